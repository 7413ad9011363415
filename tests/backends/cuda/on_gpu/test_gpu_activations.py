"""Activations that are computed in few instructions, on a GPU: the interpreter does not run these instructions."""

from __future__ import annotations

import math

import pytest
import torch

from tests.backends.cuda.on_gpu.nets import needs_gpu
from torchsmith import backends
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.activation import Gelu
from torchsmith.ops.unary import Unary

pytestmark = needs_gpu
SPECIAL = [0.0, -0.0, math.inf, math.nan, 1e-7, -1e-7, 65504.0, -65504.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("op", [Gelu("none"), Gelu("tanh"), Unary("silu"), Unary("sigmoid"), Unary("tanh")], ids=str)
def test_activation(op: Op, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.randn(2000), torch.tensor(SPECIAL)]).to(dtype)
    with Builder() as b:
        graph = b.finish([op(b.input(TensorType((len(x),), dtype)))])
    wanted = op.reference(x.double())
    assert isinstance(wanted, torch.Tensor)
    target = backends.target_of("cuda")
    engine = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=False)), target)
    found = engine([x.cuda()])[0].cpu()
    rtol = 2e-6 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(found.double(), wanted.to(dtype).double(), rtol=rtol, atol=2e-6, equal_nan=True)
