"""What inference does not need goes, and nothing that can be told apart goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith.lower.editing import Lowering
from torchsmith.lower.remove_noops import holds, remove_noops

X = torch.randn(3, 4)
N = torch.export.Dim("n", min=2, max=9)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: F.dropout(x.sin(), training=False) + 1, ["sin", "add"]),
        (lambda x: F.dropout(x.sin(), 0.0, training=True) + 1, ["sin", "add"]),
        (lambda x: F.alpha_dropout(x.sin(), training=False) + 1, ["sin", "add"]),
        (lambda x: x.sin().detach().cos(), ["sin", "cos"]),
        (lambda x: x.sin().clone().cos(), ["sin", "cos"]),
        (lambda x: x.t().contiguous().cos(), ["t", "cos"]),
        (lambda x: x.sin().view(3, 4).expand(3, -1).cos(), ["sin", "cos"]),
        (lambda x: x.sin()[:, 0:4].cos(), ["sin", "cos"]),
        (lambda x: x.sin().to(torch.float32).cos(), ["sin", "cos"]),
        (lambda x: x.sin().type_as(x).to("cpu").cos(), ["sin", "cos"]),
        (lambda x: x.sin().to(torch.float32, copy=True).cos(), ["sin", "cos"]),
        (lambda x: x.sin().double().float().cos(), ["sin", "to", "cos"]),
        (lambda x: x.half().float().double().cos(), ["to", "to", "to", "cos"]),  # dead ones wait for dead_code
        (lambda x: x.sin().t().t().cos(), ["sin", "t", "cos"]),
        (lambda x: x.sin()[None].permute(2, 0, 1).permute(1, 2, 0).cos(), ["sin", "unsqueeze", "permute", "cos"]),
        (lambda x: x.sin().permute(0, 1).transpose(1, -1).cos(), ["sin", "cos"]),
        (lambda x: torch.real(x.sin()).cos(), ["sin", "cos"]),
    ],
)
def test_goes(function: Callable[..., Any], left: list[str]) -> None:
    program = applied(remove_noops, exported(function, X), limit=0)
    assert ops(program) == left
    agrees(program, function, X)


@pytest.mark.parametrize(
    ("function", "stays"),
    [
        (lambda x: x.clone(), "clone"),  # eager returns a tensor of its own
        (lambda x: x.t().contiguous(), "contiguous"),  # the user sees the strides
        (lambda x: x.t().clone(memory_format=torch.contiguous_format).view(-1), "clone"),
        (lambda x: x.to(torch.float32, copy=True), "to"),
        (lambda x: x.double().float(), "to"),
        (
            lambda x: torch.view_as_complex(x.reshape(3, 2, 2).transpose(0, 2).contiguous().permute(1, 2, 0).contiguous()).abs(),
            "contiguous",
        ),
        (lambda x: x.t().contiguous().as_strided((2, 2), (2, 1)) * 2, "contiguous"),
        (lambda x: x.half().float() * 2, "to"),  # rounds
        (lambda x: x.long().float() * 2, "to"),
        (lambda x: x[:, 1:] * 2, "slice"),
        (lambda x: x.expand(2, 3, 4) * 2, "expand"),
        (lambda x: x.t() * 2, "t"),
    ],
)
def test_stays(function: Callable[..., Any], stays: str) -> None:
    program = applied(remove_noops, exported(function, X), limit=0)
    assert stays in ops(program)
    agrees(program, function, X)


def test_dropout_that_trains_stays() -> None:
    assert ops(applied(remove_noops, exported(lambda x: F.dropout(x, training=True), X))) == ["dropout"]


def test_the_users_own_tensor_does_not_come_back_where_it_did_not() -> None:
    program = applied(remove_noops, exported(lambda x: (x.clone(), x.contiguous(), x + 0), X))
    x = X.clone()
    copy, same, _ = program.module()(x)
    assert copy.data_ptr() != x.data_ptr() and same.data_ptr() == x.data_ptr()


@torch.library.custom_op("torchsmith_test::first_bytes", mutates_args=())
def first_bytes(x: Tensor) -> Tensor:
    return x.as_strided((2,), (1,)).clone()


@first_bytes.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(2)


def test_a_custom_op_gets_the_strides_that_it_was_given() -> None:
    def function(x: Tensor) -> Tensor:
        return first_bytes(x.t().contiguous())

    program = applied(remove_noops, exported(function, X))
    assert ops(program) == ["t", "contiguous", "first_bytes"]
    agrees(program, function, X)


def test_views_copy_where_their_copies_went() -> None:
    def function(x: Tensor) -> Tensor:
        return x.t().contiguous().view(2, 6).sin()

    program = applied(remove_noops, exported(function, X))
    assert ops(program) == ["t", "reshape", "sin"]
    agrees(program, function, X)


def test_sizes_are_compared_as_expressions() -> None:
    def function(x: Tensor) -> Tensor:
        return x.sin().view(x.shape[0], 4).expand(x.shape[0], 4).cos()

    program = applied(remove_noops, exported(function, X, dynamic=({0: N},)))
    assert [op for op in ops(program) if op != "sym_size"] == ["sin", "cos"]
    agrees(program, function, torch.randn(5, 4))


def test_asserts_that_follow_from_the_inputs_go() -> None:
    def function(x: Tensor) -> Tensor:
        torch._check(x.shape[0] <= 100)
        return x.to(torch.float64) + 1

    program = exported(function, X, dynamic=({0: N},))
    assert "_assert_tensor_metadata" in ops(program)
    assert not any("assert" in op for op in ops(applied(remove_noops, program)))


def test_asserts_about_the_data_stay() -> None:
    def function(x: Tensor) -> Tensor:
        n = x.sum().to(torch.int64).item()
        torch._check(n >= 2)
        torch._check(n <= 9)
        return torch.zeros(n)  # type: ignore[call-overload]

    program = applied(remove_noops, exported(function, torch.ones(3)))
    assert "_assert_scalar" in ops(program)
    with pytest.raises(RuntimeError):
        program.module()(torch.full((3,), 5.0))


def test_ops_that_the_user_keeps_stay() -> None:
    program = exported(lambda x: F.dropout(x.sin(), training=False) + 1, X)
    assert "dropout" in ops(applied(remove_noops, program, Lowering(HOW.config, frozenset(["aten::dropout"]))))


@pytest.mark.parametrize(
    ("wide", "narrow", "yes"),
    [
        (torch.float32, torch.float16, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float64, torch.float32, True),
        (torch.float16, torch.bfloat16, False),
        (torch.bfloat16, torch.float16, False),
        (torch.float32, torch.int16, True),
        (torch.float32, torch.int32, False),
        (torch.float64, torch.int32, True),
        (torch.float64, torch.int64, False),
        (torch.float16, torch.uint8, True),
        (torch.bfloat16, torch.uint8, True),
        (torch.bfloat16, torch.int16, False),
        (torch.int32, torch.int8, True),
        (torch.uint8, torch.int8, False),
        (torch.int64, torch.float32, False),
        (torch.int8, torch.bool, True),
        (torch.bool, torch.int8, False),
        (torch.complex64, torch.float32, False),
    ],
)
def test_which_dtypes_hold_which(wide: torch.dtype, narrow: torch.dtype, yes: bool) -> None:
    assert holds(wide, narrow) is yes
    if yes and narrow in (torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16):  # every number there is
        bits = 8 * torch.empty((), dtype=narrow).element_size()
        storage = torch.arange(2**bits).to(torch.uint8 if bits == 8 else torch.int16)
        numbers = storage.view(narrow)
        numbers = numbers[~numbers.isnan()] if narrow.is_floating_point else numbers
        assert torch.equal(numbers.to(wide).to(narrow), numbers)
