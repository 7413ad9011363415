"""Calibration data as calls of the model; what does not fit it is told by the batch, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import torchsmith
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.quantize.batches import batches_of
from torchsmith.quantize.calibrator import calibrator_of
from torchsmith.testing.pipeline import Pipeline


class Scaled(nn.Module):
    """Two inputs of as many rows, and one that is given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        z = torch.relu(self.a(x) + self.b(y))
        return z if mask is None else z * mask


X, Y, MASK = torch.randn(2, 3), torch.randn(2, 2), torch.ones(2, 4)


def calls(data: Any, *inputs: Any, kwargs: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    program = Pipeline(Scaled().eval(), *inputs, kwargs=kwargs).capture().lower().lowered.program
    return [batch.inputs for batch in batches_of(data, program)]


@pytest.mark.parametrize(
    "item",
    [
        pytest.param((X, Y), id="tuple"),
        pytest.param([X, Y], id="list"),
        pytest.param((X, Y, torch.tensor([1, 2])), id="with labels behind"),
        pytest.param(((X, Y), torch.tensor([1, 2])), id="(inputs, label)"),
        pytest.param({"x": X, "y": Y, "label": torch.tensor([1, 2])}, id="by name"),
        pytest.param(({"y": Y, "x": X}, torch.tensor([1, 2])), id="by name, with a label"),
    ],
)
def test_items_of_many_shapes_are_calls_with_as_many_inputs_as_the_model_has(item: Any) -> None:
    ((x, y),) = calls([item], X, Y)
    assert x is X and y is Y


@pytest.mark.parametrize("item", [(X, Y, MASK), (X, Y, {"mask": MASK}), {"x": X, "y": Y, "mask": MASK}])
def test_keyword_inputs_come_by_name_or_behind_the_others(item: Any) -> None:
    ((x, y, mask),) = calls([item], X, Y, kwargs={"mask": MASK})
    assert x is X and y is Y and mask is MASK


def test_batches_of_another_size_are_cut_and_the_last_is_filled_up() -> None:
    x, y = torch.arange(15.0).reshape(5, 3), torch.arange(10.0).reshape(5, 2)
    found = calls([(x, y)], X, Y)
    rows = [[0, 1], [2, 3], [4, 0]]
    assert len(found) == 3
    for (a, b), part in zip(found, rows, strict=True):
        torch.testing.assert_close(a, x[part])
        torch.testing.assert_close(b, y[part])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "the calibration data is empty"),
        (iter(()), "A generator is empty after its first use"),
        ([(X, Y), (X,)], "calibration batch 1 has 1 entries; the model takes x"),
        ([(X, X)], r"calibration batch 0 has y of shape \(2, 3\), and the model takes \(2, 2\)"),
        ([(X, Y.long())], "calibration batch 0 has y of torch.int64, and the model takes torch.float32"),
        ([(X, Y), (X, Y * torch.nan)], "calibration batch 1 has NaN in input 1"),
        ([(X * torch.inf, Y)], "calibration batch 0 has infinite numbers in input 0"),
        ([{"x": X, "z": Y}], "has x, z and lacks y"),
        (["cat.png"], "calibration batch 0 is a str; give a tensor"),
        ([(X, [Y])], "does not nest as the model's inputs do"),
        ([(X, torch.randn(3, 2))], "a batch size that does not fit"),
    ],
)
def test_what_the_model_does_not_take_is_refused_by_the_batch(data: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        calls(data, X, Y)


def ranged(size: int) -> Any:
    rows = torch.export.Dim("rows", min=1, max=8)
    return torchsmith.Input([rows, size])


@pytest.mark.parametrize("item", [((X, Y), {"mask": MASK}), ([X, Y], {"mask": MASK, "label": 3}), (X, Y, {"mask": MASK}, "label")])
def test_positional_and_keyword_inputs_come_as_a_pair_or_in_a_row(item: Any) -> None:
    ((x, y, mask),) = calls([item], X, Y, kwargs={"mask": MASK})
    assert x is X and y is Y and mask is MASK


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([(X, Y), (X[:0], Y[:0])], r"calibration batch 1 has x of shape \(0, 3\), which is empty; leave empty batches out"),
        ([(X, Y[:1])], "calibration batch 0 has 1 for dimension 0 of y, and by dimension 0 of x it should be 2"),
        ([(X.double(), Y)], r"x of torch.float64, and the model takes torch.float32; give x.to\(torch.float32\)"),
    ],
)
def test_sizes_that_may_change_are_held_to_each_other(data: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        calls(data, ranged(3), ranged(2))


def test_any_number_of_rows_is_one_call_where_it_may_change() -> None:
    found = calls([(torch.randn(count, 3), torch.randn(count, 2)) for count in (1, 5, 64)], ranged(3), ranged(2))
    assert [x.shape[0] for x, _ in found] == [1, 5, 64]


def test_sizes_that_others_make_are_checked() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.reshape(-1, 2).sum(1) + y

    half = torch.export.Dim("half", min=1, max=8)
    whole, part = torchsmith.Input([2 * half]), torchsmith.Input([half])
    program = Pipeline(Halves().eval(), whole, part).capture().lower().lowered.program
    assert len(list(batches_of([(torch.randn(6), torch.randn(3))], program))) == 1
    with pytest.raises(InvalidInput, match="has 7 for dimension 0 of x, and by dimension 0 of y it should be 6"):
        list(batches_of([(torch.randn(7), torch.randn(3))], program))


def test_an_empty_batch_for_a_fixed_size_is_refused_too() -> None:
    with pytest.raises(InvalidInput, match="which is empty"):
        calls([(X[:0], Y[:0])], X, Y)


class Named(nn.Module):
    """A batch as one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, batch: dict[str, Tensor], scale: Tensor) -> Tensor:
        return self.layer(batch["x"]) * scale  # type: ignore[no-any-return]


@pytest.mark.parametrize("item", [({"x": X, "label": 3}, MASK), ({"label": 3, "x": X}, MASK, "more"), ({"x": X}, MASK)])
def test_a_dict_that_is_an_input_may_have_more_in_it(item: Any) -> None:
    program = Pipeline(Named().eval(), {"x": X}, MASK).capture().lower().lowered.program
    ((x, scale),) = [batch.inputs for batch in batches_of([item], program)]
    assert x is X and scale is MASK
    with pytest.raises(InvalidInput, match="does not nest as the model's inputs do; the model takes batch_x"):
        list(batches_of([({"y": X}, MASK)], program))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda: [X], "is a function; pass a DataLoader.* calibration cache; call it, and pass what it gives"),
        (TensorDataset(X), r"is a TensorDataset; .*; a data set becomes one by torch.utils.data.DataLoader\(data, batch_size=…\)"),
        (nn.Linear(2, 2), r"is a Linear; pass a DataLoader.* calibration cache$"),
    ],
)
def test_what_is_no_data_is_told_how_to_become_it(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        calibrator_of(given)


def test_no_name_is_no_file() -> None:
    assert DataLoaderCalibrator([X], cache_file="").cache_file is None
    with pytest.raises(InvalidOption, match="needs a cache_file"):
        DataLoaderCalibrator([X], cache_file="", use_cache=True)
