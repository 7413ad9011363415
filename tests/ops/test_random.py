"""Random numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("rand", lambda x: x + torch.rand(3)),
        ("rand_like", torch.rand_like),
        ("randn", lambda x: x + torch.randn(3)),
        ("randn_like", torch.randn_like),
        ("randint", lambda x: x + torch.randint(0, 5, (3,))),
        ("randperm", lambda x: x + torch.randperm(3)),
        ("bernoulli", lambda x: torch.bernoulli(x.abs().clamp(max=1))),
        ("multinomial", lambda x: torch.multinomial(x.abs(), 2)),
        ("normal", lambda x: torch.normal(x, 1.0)),
        ("poisson", lambda x: torch.poisson(x.abs())),
    ],
)
def test_random_numbers_stay_in_pytorch(name: str, function: Callable[[Tensor], Tensor]) -> None:
    OpCase(function, rand(3)).refused(f"{name} draws random numbers, which stay in PyTorch so that its seed rules them")
