"""Ops of our IR that undo or continue each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify
from torchsmith.lower.tidy import tidy
from torchsmith.ops.cast import Cast
from torchsmith.ops.permute import Permute
from torchsmith.ops.reshape import Reshape

N = symbol("n")


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: Reshape((N, 12))(Reshape((N, 4, 3))(x)), ["Reshape(shape=(n, 12))"]),
        (lambda x: Reshape((N, 3, 4))(Reshape((N, 12))(Reshape((N, 4, 3))(x))), []),
        (lambda x: Permute((0, 2, 1))(Permute((0, 2, 1))(x)), []),
        (lambda x: Permute((1, 0, 2))(Permute((2, 0, 1))(x)), ["Permute(dims=(0, 2, 1))"]),
        (lambda x: Cast(torch.float32)(Cast(torch.float64)(x)), []),
        (lambda x: Cast(torch.bfloat16)(Cast(torch.float64)(x)), ["Cast(dtype=torch.bfloat16)"]),
        (lambda x: Cast(torch.float32)(Cast(torch.bfloat16)(x)), ["Cast(dtype=torch.bfloat16)", "Cast(dtype=torch.float32)"]),
        (lambda x: Reshape((N, 12))(Permute((0, 2, 1))(x)), ["Permute(dims=(0, 2, 1))", "Reshape(shape=(n, 12))"]),
    ],
)
def test_tidy(function: Callable[[Value], Value], left: list[str]) -> None:
    with Builder({"n": (1, 8)}) as builder:
        y = function(builder.input(TensorType((N, 3, 4), torch.float32)))
    graph = builder.finish([y])
    found = tidy(graph)
    verify(found, "tidy")
    assert [str(node.op) for node in found.nodes] == left
    x = torch.randn(5, 3, 4)
    assert torch.equal(interpret(found, [x])[0], interpret(graph, [x])[0])
