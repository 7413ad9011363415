"""Ops without a converter are taken apart where every part has one, and are left whole elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith import convert
from torchsmith.lower.decompose import decompose
from torchsmith.lower.editing import Lowering
from torchsmith.ops.registry import load_all

aten = torch.ops.aten
subject = importlib.import_module("torchsmith.lower.decompose")  # the package's `decompose` is the function
X = torch.rand(2, 4, 6) + 0.5
KNOWN = (
    aten.mul.Tensor,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Scalar,
    aten.sigmoid.default,
    aten.exp.default,
    aten.mean.dim,
    aten.linear.default,
)
KNOWN += (aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.sqrt.default, aten.silu.default)


@pytest.fixture(autouse=True)
def few_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a converter grows with every release; these tests know a fixed few."""
    few = {op: found for op, found in load_all().items() if op in KNOWN}
    monkeypatch.setattr(convert, "load_all", lambda: few)


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 6))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        pytest.param(lambda x, w: torch.addcmul(x, x, w[0, 0], value=2), {"mul", "add"}, id="core ATen"),
        pytest.param(lambda x, w: torch.ops.aten.linear(x, w), {"linear"}, id="has a converter"),
        pytest.param(lambda x, w: torch.ops.aten.hardswish(x), {"hardswish"}, id="its parts have none"),
        pytest.param(lambda x, w: torch.special.expit(x) * F.silu(x), {"sigmoid", "mul", "silu"}, id="composite"),
        pytest.param(lambda x, w: x.cumsum(0), {"cumsum"}, id="no decomposition"),
    ],
)
def test_ops(function: Callable[..., Any], parts: set[str]) -> None:
    net = Net(function)
    program = applied(decompose, exported(net, X))
    assert set(ops(program)) - {"select", "sym_size"} <= parts
    agrees(program, net, X)


@pytest.mark.parametrize(("last", "left"), [(lambda x: x * x, ["mul", "mul"]), (lambda x: x.cumsum(0), ["cos"])])
def test_parts_are_taken_apart_in_turn(last: Callable[[Tensor], Tensor], left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {aten.cos.default: lambda x: aten.sinc(x) * 2.0, aten.sinc.default: last}
    monkeypatch.setattr(subject, "_decomposition", steps.get)
    program = exported(Net(lambda x, w: x.cos()), X)
    text = ops(decompose(program, HOW))
    assert text == left


def test_parts_come_from_the_line_of_the_op() -> None:
    program = applied(decompose, exported(nn.Sequential(nn.LayerNorm(6), nn.GLU()), X))
    before = exported(nn.Sequential(nn.LayerNorm(6), nn.GLU()), X)
    lines = {node.meta["stack_trace"] for node in before.graph.nodes if node.op == "call_function"}
    assert {node.meta["stack_trace"] for node in program.graph.nodes if node.op == "call_function"} <= lines


def test_sizes_stay_symbolic() -> None:
    net = Net(lambda x, w: torch.outer(x.mean((1, 2)), w[0]).unsqueeze(1) * torch.addcmul(x, x, x))
    program = applied(decompose, exported(net, X, dynamic=({0: torch.export.Dim("n", min=2, max=9)},)))
    assert "outer" not in ops(program) and "addcmul" not in ops(program)
    agrees(program, net, torch.rand(5, 4, 6))


def test_the_users_ops_stay_whole() -> None:
    program = exported(Net(lambda x, w: torch.outer(x[0, 0], w[0]) + torch.addcmul(x, x, x)[1, 1]), X)
    kept = applied(decompose, program, Lowering(HOW.config, frozenset(["aten.outer.default", "torch.ops.aten.addcmul"])))
    assert {"outer", "addcmul"} <= set(ops(kept))


def test_several_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor, w: Tensor) -> Any:
        least, greatest = torch.aminmax(x, dim=1)
        return greatest - least, least

    monkeypatch.setattr(subject, "_converts", lambda node, converter: "aminmax" not in str(node.target))
    program = applied(decompose, exported(Net(function), X))
    assert sorted(ops(program)) == ["amax", "amin", "sub"]
    agrees(program, Net(function), X)


def test_fake_quantization_stays_whole() -> None:
    program = exported(Net(lambda x, w: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127) + 1), X)
    assert ops(applied(decompose, program)) == ["fake_quantize_per_tensor_affine", "add"]


def test_a_decomposition_may_not_assume_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def specialises(x: Tensor, *_: Any) -> Tensor:
        return x * 1.0 if x.shape[0] == 2 else x * 2.0

    monkeypatch.setattr(subject, "_decomposition", lambda target: specialises if "cos" in str(target) else None)
    program = exported(Net(lambda x, w: x.cos()), X, dynamic=({0: torch.export.Dim("n", min=2, max=9)},))
    assert ops(applied(decompose, program)) == ["cos"]


def test_random_ops_and_data_dependent_sizes_stay() -> None:
    program = exported(Net(lambda x, w: x[x > 1].sum() + torch.bernoulli(x * 0).sum()), X)
    assert {"bernoulli", "index"} <= set(ops(decompose(program, HOW)))


@pytest.mark.parametrize("older", [False, True])
def test_guards_are_refused_by_both_ways(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has no `error_on_new_guards`; the stand-in refuses and allows the same."""
    if older:
        monkeypatch.setattr(subject, "_no_guards", subject._known_only)
    test_a_decomposition_may_not_assume_sizes(monkeypatch)
    monkeypatch.undo()
    few = {op: found for op, found in load_all().items() if op in KNOWN}
    monkeypatch.setattr(convert, "load_all", lambda: few)
    if older:
        monkeypatch.setattr(subject, "_no_guards", subject._known_only)
    test_sizes_stay_symbolic()
