"""The op of fp8 as PyTorch runs it: its numbers, its types, and graphs that PyTorch exports with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torchsmith.ops.float8 import FP8, GREATEST, dequantized, quantized

fake = torch.ops.torchsmith.fake_quantize_float8
# Every number of the format from 0 on: three bits of mantissa, below 2**-6 in steps of 2**-9.
NUMBERS = [n * 2.0**-9 for n in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)][:-1]


def test_each_number_is_the_nearest_of_the_format() -> None:
    known = torch.tensor(NUMBERS, dtype=torch.float64)
    assert float(known.max()) == GREATEST
    x = torch.cat((torch.randn(2000) * 60, torch.randn(2000) * 0.01)).double()
    nearest = known[(x.abs()[:, None] - known).abs().argmin(1)] * x.sign()
    assert torch.equal(fake(x.float(), torch.tensor(1.0)).double(), nearest)


def test_ties_go_to_even_and_the_rest_to_the_limits() -> None:
    x = torch.tensor([17.0, 19.0, -17.0, 464.0, 1e30, math.inf, -math.inf])
    assert fake(x, torch.tensor(1.0)).tolist() == [16.0, 20.0, -16.0, 448.0, 448.0, 448.0, -448.0]
    assert bool(fake(torch.tensor(math.nan), torch.tensor(1.0)).isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_go_along_a_dimension(dtype: torch.dtype, axis: int) -> None:
    x, scales = torch.randn(3, 4, 5).to(dtype), torch.rand((3, 4, 5)[axis]) * 0.01 + 0.01
    y = fake(x, scales, axis)
    assert y.dtype == dtype
    rows = [fake(row, scale) for row, scale in zip(x.unbind(axis), scales, strict=True)]
    assert torch.equal(y, torch.stack(rows, axis))
    q = quantized(x, scales, axis % 3)
    assert q.dtype == FP8 and torch.equal(dequantized(q, scales, axis % 3, dtype), y)


def test_it_is_exported_with_sizes_that_change() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = fake(x * 2, torch.tensor(0.01))
            return y

    x = torch.randn(3, 5)
    program = torch.export.export(Net(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
    assert torch.equal(program.module()(torch.cat((x, x))), Net()(torch.cat((x, x))))
