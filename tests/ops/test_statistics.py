"""Variances, norms and other reductions made of several ops."""

from __future__ import annotations

import pytest
import torch

from torchsmith.testing.op_case import OpCase, rand

X = rand(2, 3, 5)


@pytest.mark.parametrize("name", ["var", "std", "var_mean", "std_mean"])
def test_spread(name: str) -> None:
    f = getattr(torch, name)
    OpCase(lambda x: (f(x), f(x, dim=1), f(x, dim=(0, 2), correction=0, keepdim=True)), X).accepted()
    OpCase(lambda x: (f(x, unbiased=False), f(x, dim=-1, unbiased=False), f(x, dim=0, correction=0.5)), X).accepted()


def test_spread_around_a_large_mean() -> None:
    OpCase(lambda x: torch.var(x, 1), rand(3, 100) + 100, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("order", [2, 1, 0, 3, 0.5, torch.inf, -torch.inf, -2])
def test_norm(order: float) -> None:
    x = rand(2, 3, 5, low=0.5) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    OpCase(
        lambda x: (torch.linalg.vector_norm(x, order), torch.linalg.vector_norm(x, order, dim=(0, -1), keepdim=True)), x
    ).accepted()


def test_norm_by_its_older_name() -> None:
    OpCase(lambda x: (torch.norm(x), x.norm(dim=1), x.norm(p=1, dim=(0, 2), keepdim=True)), X).accepted()
    OpCase(lambda x: torch.ops.aten.norm.Scalar(x, 3), X).accepted()


def test_normalize() -> None:
    OpCase(lambda x: torch.nn.functional.normalize(x, dim=1), X).accepted()


def test_logsumexp() -> None:
    OpCase(lambda x: (torch.logsumexp(x, 1), torch.logsumexp(x, (0, -1), keepdim=True)), X).accepted()
    far = torch.tensor([[500.0, 501.0], [-500.0, -torch.inf], [-torch.inf, -torch.inf], [torch.inf, 1.0]])
    OpCase(lambda x: torch.logsumexp(x, 1), far).accepted()
    OpCase(lambda x: torch.logsumexp(x, 0), torch.arange(4), dtypes=(torch.float32,)).accepted()


def test_sizes_may_be_symbolic() -> None:
    functions = (torch.var, torch.std, torch.logsumexp, lambda x, dim: torch.linalg.vector_norm(x, dim=dim))
    OpCase(lambda x: [f(x, dim=0) for f in functions], rand(3, 5), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_refusals() -> None:
    OpCase(torch.var, rand(3).double()).refused("float64", on="openvino")
    OpCase(lambda x: torch.linalg.vector_norm(x, dtype=torch.float64), rand(3)).refused("float64", on="openvino")
    OpCase(lambda x: torch.logsumexp(x, 0), rand(0, 3)).refused("no elements")
