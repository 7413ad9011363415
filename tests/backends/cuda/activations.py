"""Activations that are computed in few instructions: what to try them on, the whole range of float16, and what they should give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.activation import Gelu
from torchsmith.ops.quantize import fake_quantize
from torchsmith.ops.unary import Unary

SPECIAL = [0.0, -0.0, math.inf, math.nan, 1e-7, -1e-7, 65504.0, -65504.0]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
activations = pytest.mark.parametrize("op", [Gelu("none"), Gelu("tanh"), Unary("silu"), Unary("sigmoid"), Unary("tanh")], ids=str)


def graph_and_input(op: Op, dtype: torch.dtype) -> tuple[Graph, Tensor]:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.randn(2000), torch.tensor(SPECIAL)]).to(dtype)
    with Builder() as b:
        return b.finish([op(b.input(TensorType((len(x),), dtype)))]), x


def check(op: Op, x: Tensor, found: Tensor) -> None:
    wanted = op.reference(x.double())
    assert isinstance(wanted, Tensor)
    rtol = 2e-6 if x.dtype == torch.float32 else 1e-3
    torch.testing.assert_close(found.double(), wanted.to(x.dtype).double(), rtol=rtol, atol=2e-6, equal_nan=True)


STEP = 1 / 64


def rounded_graph_and_input(op: Op) -> tuple[Graph, Tensor]:
    """The activation of float16, rounded to int8 in steps of `STEP`."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.randn(2000), torch.tensor([0.0, -0.0, math.inf, 65504.0])]).half()
    with Builder() as b:
        y = fake_quantize(op(b.input(TensorType((len(x),), torch.float16))), STEP, 0, None, -128, 127)
        return b.finish([y]), x


def check_rounded(op: Op, x: Tensor, found: Tensor) -> None:
    """Half a step, and what a coarse function may err."""
    wanted = op.reference(x.double())
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(found.double(), wanted.clamp(-128 * STEP, 127 * STEP), rtol=5e-4, atol=STEP / 2 + 1e-3)
