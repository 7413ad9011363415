"""Engines with 2:4 weights: their pointwise launches, layouts and memory, with the libraries' ops in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, run
from torchsmith.backends.cuda import cusparselt, tactics
from torchsmith.backends.cuda.sparse import SparseIntegerLinear, SparseLinear
from torchsmith.backends.cuda.tactics import sparse, sparse_int8
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize, quantize
from torchsmith.ops.unary import Unary
from torchsmith.sparsity import two_four_mask


@pytest.fixture(autouse=True)
def sparse_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An untimed build takes the first tactic."""
    rest = [name for name in tactics.ORDER if name not in tactics.SPARSE]
    monkeypatch.setattr(tactics, "ORDER", (*sorted(tactics.SPARSE), *rest))
    monkeypatch.setattr(torch._C, "_has_cusparselt", True)
    monkeypatch.setattr(cusparselt, "library", lambda: True)
    yield


class Block(nn.Module):
    """A residual block of 1×1 convolutions, and linear layers behind it. x: (N, 32, H, W)."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 48, 1, bias=bias), nn.Conv2d(48, 32, 1, bias=bias)
        self.c, self.d = nn.Linear(32, 64, bias), nn.Linear(64, 16, bias)
        for layer in (self.a, self.b, self.c, self.d):
            layer.weight.data.mul_(two_four_mask(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        x = (self.b(F.silu(self.a(x))) + x).relu()
        y: Tensor = self.d(F.gelu(self.c(x.flatten(2).transpose(1, 2))))
        return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_products(bias: bool, dtype: torch.dtype, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        configs = sparse.SparseTemplate.configs
        monkeypatch.setattr(sparse.SparseTemplate, "configs", lambda self, e: [c for c in configs(self, e) if not c.fused])
    found = check(Block(bias), torch.randn(2, 32, 4, 3), dtype=dtype)
    assert found.kernels.count("[SparseLinear]") == 4, found.kernels
    ops = [step.op for step in found.steps if hasattr(step, "op")]
    assert sum(op.residual and op.activation == "relu" for op in ops if isinstance(op, SparseLinear)) == fused
    assert found.kernels.count("pointwise") >= 4 - fused, found.kernels


def integers(channels_first: bool, zero_point: bool, again: bool) -> Graph:
    """A layer of int8 with relu. again: to int8 again, in float32 up to there, so that nothing is rounded to 16 bits."""
    dtype = torch.float32 if again else torch.float16
    with Builder() as builder:
        x = builder.input(TensorType((2, 64, 4, 4) if channels_first else (32, 64), torch.int8))
        weight = torch.randint(-127, 128, (32, 64)).to(torch.int8)
        weight = weight * two_four_mask(weight.float())
        given = builder.constant(weight[:, :, None, None] if channels_first else weight)
        zero = builder.constant(torch.tensor(7, dtype=torch.int8)) if zero_point else None
        scales, bias = builder.constant(torch.linspace(0.01, 0.02, 32)), builder.constant(torch.linspace(-1, 1, 32).to(dtype))
        pair = dequantize(x, 0.05, zero, None, dtype), dequantize(given, scales, None, 0, dtype)
        op = Convolution((1, 1), ((0, 0), (0, 0)), (1, 1), 1) if channels_first else Linear()
        y = Unary("relu")(op(*pair, bias))
        return builder.finish([quantize(y, 0.2, None, None, -127, 127, torch.int8) if again else y])


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(("scaled", "fused"), [(True, True), (True, False), (False, False)])
def test_integers(channels_first: bool, zero_point: bool, scaled: bool, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = sparse_int8.SparseInt8Template.configs
    monkeypatch.setattr(
        sparse_int8.SparseInt8Template,
        "configs",
        lambda self, e: [c for c in configs(self, e) if (c.scaled, c.fused) == (scaled, fused)],
    )
    graph = integers(channels_first, zero_point, False)
    found = run(graph, [torch.randint(-128, 128, graph.inputs[0].type.shape).to(torch.int8)])
    assert found.kernels == ["[SparseIntegerLinear]", *(["pointwise"] if not fused else [])]
    (op,) = [step.op for step in found.steps if hasattr(step, "op")]
    assert isinstance(op, SparseIntegerLinear) and op.dtype == (torch.float16 if scaled else torch.int32)
    assert found.error <= 1.1 * found.eager_error + 2e-4, (found.error, found.eager_error)


def test_what_goes_on_in_float32_takes_the_sums() -> None:
    graph = integers(False, True, True)
    found = run(graph, [torch.randint(-128, 128, (32, 64)).to(torch.int8)])
    (op,) = [step.op for step in found.steps if hasattr(step, "op")]
    assert isinstance(op, SparseIntegerLinear) and op.dtype == torch.int32
    assert found.error <= found.eager_error + 2e-3
