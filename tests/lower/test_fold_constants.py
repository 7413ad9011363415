"""What does not depend on the inputs is computed once, unless it is better where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith.config import LowerConfig
from torchsmith.lower.editing import Lowering
from torchsmith.lower.fold_constants import fold_constants
from torchsmith.lower.functionalize import functionalize

X = torch.randn(3, 4)


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any], shape: tuple[int, ...] = (4, 3)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, w: x @ w.t().contiguous().t(), ["matmul"]),
        (lambda x, w: x * torch.arange(4) + torch.full((3, 1), 2.0), ["mul", "add"]),
        (lambda x, w: x @ (w.split(2)[1].exp().repeat(2, 1) * 2), ["matmul"]),
        (lambda x, w: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), ["add"]),
        (lambda x, w: x + torch.ones(3, 4).triu(), ["add"]),
    ],
)
def test_folds(function: Callable[..., Any], left: list[str]) -> None:
    net = Net(function)
    program = applied(fold_constants, applied(functionalize, exported(net, X)))
    program.graph.eliminate_dead_code()
    assert ops(program) == left
    agrees(program, net, X)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, w: x + torch.rand(3, 4), ["rand", "add"]),
        (lambda x, w: x + torch.zeros(4).expand(3, 4), ["expand", "add"]),  # broadcasts where it stands
        (lambda x, w: (x, w.t()), ["t"]),  # the user may write to what they get
        (lambda x, w: (x, torch.zeros(3).view(1, 3)), ["zeros", "view"]),
        (
            lambda x, w: torch.nn.functional.pad(x, (0, 96)).repeat(100, 1) + torch.full((300, 100), 1.0).repeat(1, 1),
            ["pad", "repeat", "add"],
        ),
        (lambda x, w: x.sum() + torch.zeros(1024, 1024), ["sum", "zeros", "add"]),  # four MiB from nothing
        (lambda x, w: x @ torch.fake_quantize_per_channel_affine(w, torch.ones(4), torch.zeros(4), 0, -128, 127), None),
        (lambda x, w: torch.full((3, 1), 2.0) + torch.ones(x.shape[0], 4) * x, None),
    ],
)
def test_does_not_fold(function: Callable[..., Any], left: list[str] | None) -> None:
    program = applied(fold_constants, exported(Net(function), X), limit=0)
    program.graph.eliminate_dead_code()
    if left is not None:
        assert ops(program) == left
    else:
        assert any("fake_quantize" in op or op == "mul" for op in ops(program))


def test_growth_is_weighed_against_what_it_comes_from() -> None:
    program = applied(fold_constants, exported(Net(lambda x, w: x.sum() + w.repeat(1, 4), (512, 512)), X))
    assert ops(program) == ["sum", "add"]
    program = applied(fold_constants, exported(Net(lambda x, w: x.sum() + w.repeat(1, 5), (512, 512)), X))
    assert ops(program) == ["sum", "repeat", "add"]


def test_a_small_result_of_something_large_is_folded() -> None:
    program = applied(fold_constants, exported(lambda x: x + torch.ones(2048, 2048).sum() / 2, X))
    program.graph.eliminate_dead_code()
    assert ops(program) == ["add"]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + (self.calls * 2).sum()


def test_buffers_that_are_written_to_are_no_constants() -> None:
    program = exported(Counter(), X).run_decompositions({})
    assert ops(applied(fold_constants, program)) == ["add", "mul", "sum", "add"]


def test_views_do_not_drag_their_storage_along() -> None:
    program = applied(fold_constants, exported(Net(lambda x, w: x + w[0, :1].view(1)), X))
    (tensor,) = (t for name, t in program.constants.items() if "folded" in name)
    assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_sizes_that_depend_on_the_inputs_stay() -> None:
    n = torch.export.Dim("n", min=2, max=9)
    program = applied(fold_constants, exported(lambda x: x + torch.arange(x.shape[0])[:, None], X, dynamic=({0: n},)))
    assert "arange" in ops(program)


def test_switched_off_or_kept() -> None:
    program = exported(lambda x: x + torch.ones(4).exp(), X)
    assert "exp" in ops(applied(fold_constants, program, Lowering(LowerConfig(fold_constants=False))))
    assert "exp" in ops(applied(fold_constants, program, Lowering(HOW.config, frozenset(["aten.exp"]))))
