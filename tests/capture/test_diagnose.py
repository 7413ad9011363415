"""What a capture that fails says: which input, which line, why, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from torchsmith.capture import capture
from torchsmith.errors import CaptureError, InvalidInput
from torchsmith.inputs import Input, resolve

BATCH = Dim("batch", min=1, max=8)


class Model(nn.Module):
    """`run(self, *inputs)` as a model, with two layers to use."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.run = run

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.fc(y.flatten(1))  # takes 1x1 pictures only


@pytest.mark.parametrize(
    ("inputs", "kwargs", "why"),
    [
        ([], None, r"Net.forward\(x, mask=None\) does not take these inputs: missing a required argument: 'x'"),
        ([Input((1, 3, 3, 3)), None, 3], None, "too many positional arguments"),
        ([Input((1, 3, 3, 3))], {"nope": 1}, "unexpected keyword argument 'nope'"),
        (
            [Input((1, 3, 8, 8))],
            None,
            r"mat1 and mat2 shapes cannot be multiplied \(1x288 and 8x2\) \(.*test_diagnose.py:\d+  return self.fc.*"
            r"The inputs were inputs\[0\]: float32\[1, 3, 8, 8\]",
        ),
        ([{"x": Input((1, 3, 3, 3))}], None, r"inputs\[0\] is a dict of argument names: pass it as kwarg_inputs"),
        ([Input((1, 3, 3, 3), dtype=torch.half)], None, r"parameters are torch.float32: try Input\(..., dtype=torch.float32\)"),
        ([Input((1, 3, Dim("h"), Dim("w")))], None, "a Dim without a max was tried at a small size"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, kwargs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        capture(Net().eval(), resolve(inputs, kwargs))


def asserts(self: Model, x: Tensor) -> Tensor:
    assert x.shape[1] == 4, f"wants 4 channels, not {x.shape[1]}"
    return x


def looks_up(self: Model, x: dict[str, Tensor]) -> Tensor:
    return x["key"]


@pytest.mark.parametrize(
    ("run", "inputs", "why"),
    [
        (asserts, [Input((2, 3))], r"wants 4 channels, not 3 \(.*test_diagnose.py:\d+  assert x.shape"),
        (looks_up, [{"other": Input((2,))}], r"KeyError: 'key' \(.*test_diagnose.py:\d+  return x\[\"key\"\]\)"),
    ],
)
def test_what_the_model_itself_raises_is_told_with_its_line(run: Any, inputs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as raised:
        capture(Model(run).eval(), resolve(inputs))
    assert raised.value.__cause__ is not None


def test_training_mode_is_named_as_a_likely_cause() -> None:
    with pytest.raises(InvalidInput, match=r"Expected more than 1 value.*training mode: call model.eval\(\)"):
        capture(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train(), resolve([Input((1, 3))]))


def branches(self: Model, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x + 1
    return x - 1


def slices(self: Model, x: Tensor) -> Tensor:
    return x[: int(x.max())]


@pytest.mark.parametrize(("run", "line"), [(branches, r"if x.sum\(\) > 0:"), (slices, r"return x\[: int\(x.max\(\)\)\]")])
def test_control_flow_on_values(run: Any, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    why = (
        rf"cannot be exported: its control flow.* depends on the values of a tensor \(.*test_diagnose.py:\d+  {line}\).*torch.cond"
    )
    with pytest.raises(CaptureError, match=why):
        capture(Model(run).eval(), resolve([Input((3,), dtype=torch.int64)]))
    shown = capfd.readouterr()
    assert not shown.out and not shown.err, "torch's unfinished graph was shown"


def leaves_torch(self: Model, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1)


def returns_odd(self: Model, x: Tensor) -> Any:
    return x, object()


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (
            leaves_torch,
            r"Model runs, but cannot be exported: .numpy\(\) is not supported.*test_diagnose.py:\d+  return torch.from_numpy",
        ),
        (returns_odd, "Model runs, but cannot be exported: Found <class 'object'> in output"),
    ],
)
def test_what_runs_and_cannot_be_exported(run: Any, why: str) -> None:
    with pytest.raises(CaptureError, match=why):
        capture(Model(run).eval(), resolve([Input((3,))]))


def test_a_module_with_a_call_of_its_own_signature_error_keeps_torch_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidInput):
        capture(nn.Linear(3, 3), resolve([Input((2, 5))]))
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


# dynamic sizes


def adds(self: Model, x: Tensor, y: Tensor) -> Tensor:
    return x + y


def doubles(self: Model, x: Tensor, y: Tensor) -> Tensor:
    return x + torch.cat([y, y])


def fours(self: Model, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0] // 4, 4, -1)


def large(self: Model, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 4 else x


def convolves(self: Model, x: Tensor) -> Tensor:
    return self.conv(x)


def one(self: Model, x: Tensor) -> Tensor:
    if x.shape[0] == 1:
        return x * 2
    return x


def more_than_one(self: Model, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 1 else x


def squeezes(self: Model, x: Tensor) -> Tensor:
    return x.squeeze()


def fails_at_one(self: Model, x: Tensor) -> Tensor:
    if x.shape[0] > 1:
        return x
    raise ValueError("a single one is too few")


RANGE = {"min_shape": (1, 3), "max_shape": (8, 3)}


@pytest.mark.parametrize(
    ("run", "inputs", "why"),
    [
        (adds, [Input((BATCH, 3)), Input((Dim("c", min=1, max=8), 3))], "needs c = batch, where.*one torch.export.Dim.* ties"),
        (
            doubles,
            [Input(min_shape=(2, 3), max_shape=(8, 3)), Input(min_shape=(1, 3), max_shape=(4, 3))],
            r"needs batch = 2\*inputs_1_dim0",
        ),
        (fours, [Input((Dim("n", min=4, max=64), 3))], r"for example _n = Dim\('_n', min=1, max=16\), n = 4\*_n"),
        (large, [Input((BATCH, 3))], r"for example batch = Dim\('batch', min=5, max=8\)"),
        (
            convolves,
            [Input(min_shape=(1, 3, 1, 9), max_shape=(8, 3, 64, 9))],
            r"needs 3 <= inputs_0_dim2.* is dimension 2 of inputs\[0\].*min=3, max=64",
        ),
        (convolves, [Input((1, Dim("c", min=1, max=3), 9, 9))], r"needs c = 3, where c is dimension 1 of inputs\[0\]"),
        (
            one,
            [Input((BATCH, 3))],
            r"smallest sizes \(inputs\[0\]: \[1, 3\]\) the model computes something else.*raise the min to 2",
        ),
        (
            more_than_one,
            [Input((BATCH, 3))],
            r"smallest sizes \(inputs\[0\]: \[1, 3\]\) the model computes something else.*raise the min to 2",
        ),
        (squeezes, [Input((BATCH, 3))], r"gives a tensor of shape \[3\], where larger sizes lead to \[1, 3\]"),
        (fails_at_one, [Input((BATCH, 3))], "the model fails at the smallest sizes .*: a single one is too few. Raise the min"),
    ],
)
def test_sizes_that_the_model_does_not_take(run: Any, inputs: Any, why: str) -> None:
    with pytest.raises(CaptureError, match=why):
        capture(Model(run).eval(), resolve(inputs))


@pytest.mark.parametrize(
    ("run", "inputs", "ranges"),
    [
        (adds, [Input((BATCH, 3)), Input((BATCH, 3))], [(1, 8)]),
        (adds, [Input(**RANGE), Input(**RANGE)], [(1, 8)]),
        (adds, [Input(min_shape=(3, 1), max_shape=(3, 8)), Input(min_shape=(3, 1), max_shape=(3, 8))], [(1, 8)]),
        (adds, [Input((BATCH, 3)), Input(**RANGE)], [(1, 8)]),
        (adds, [Input(**RANGE, opt_shape=(4, 3)), Input(min_shape=(2, 3), opt_shape=(4, 3), max_shape=(6, 3))], [(2, 6)]),
        (doubles, [Input((2 * BATCH, 3)), Input((BATCH, 3))], [(1, 8), (2, 16)]),
        (more_than_one, [Input(min_shape=(2, 3), max_shape=(8, 3))], [(2, 8)]),
        (fours, [Input((4 * Dim("_n", min=1, max=16), 3))], None),
        (adds, [Input((Dim.AUTO, 3)), Input((Dim.AUTO, 3))], None),
    ],
)
def test_sizes_that_it_takes(run: Any, inputs: Any, ranges: Any) -> None:
    model = Model(run).eval()
    captured = capture(model, resolve(inputs))
    if ranges is not None:
        assert sorted((int(r.lower), int(r.upper)) for r in captured.program.range_constraints.values()) == ranges
    assert captured.inputs is not None
    module = captured.program.module()
    for field in ("min", "traced", "max") if ranges != [(2, 6)] else ("traced",):
        args, _ = captured.inputs.at(field)
        assert torch.equal(module(*args), model(*args))


def test_an_lstm_cell_works_at_size_1_whatever_torch_notes() -> None:
    cell = nn.LSTMCell(3, 3).eval()
    captured = capture(cell, resolve([Input((BATCH, 3)), (Input((BATCH, 3)), Input((BATCH, 3)))]))
    x, state = torch.rand(1, 3), (torch.rand(1, 3), torch.rand(1, 3))
    for given, wanted in zip(captured.program.module()(x, state), cell(x, state), strict=True):
        torch.testing.assert_close(given, wanted)


# state


def test_state_in_plain_attributes_is_warned_of_and_caches_are_not(recwarn: pytest.WarningsRecorder) -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.cache = torch.zeros(3), {}

        def forward(self, x: Tensor) -> Tensor:
            self.cache["weights"] = torch.arange(3.0)
            self.h = self.h + x * self.cache["weights"]
            return self.h

    model = Filter().eval()
    with pytest.warns(UserWarning, match="Filter overwrites self.h at each call.*Register it as a buffer") as caught:
        capture(model, resolve([Input((3,))]))
    assert not any("cache" in str(w.message) for w in caught)
    assert torch.equal(model.h, torch.zeros(3)) and model.cache == {}
