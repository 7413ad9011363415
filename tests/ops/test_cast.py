"""Casts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.ir.interpret import interpret
from torchsmith.testing.op_case import OpCase, rand, randint

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_every_dtype(dtype: torch.dtype) -> None:
    f, i, b = rand(3, 7, low=0.0, high=9.0), randint(5, high=100), torch.tensor([True, False])
    OpCase(lambda f, i, b: (f.to(dtype), i.to(dtype), b.to(dtype)), f, i, b, dtypes=(torch.float32,)).accepted()
    OpCase(lambda f: f.to(dtype), f, dtypes=(torch.bfloat16, torch.float16)).accepted()


def test_truth() -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, 0.3, torch.nan, torch.inf, -2.0])
    OpCase(lambda x, i: (x.bool(), i.bool()), x, torch.tensor([0, 256, -(2**31), 2**16])).accepted()


def test_floats_are_cut_off() -> None:
    OpCase(lambda x: (x.int(), x.long()), torch.tensor([-2.7, -0.5, 0.5, 2.7, 1e6])).accepted()


def test_other_ways_to_say_it() -> None:
    x, like = rand(3), randint(2, dtype=torch.int32)
    OpCase(
        lambda x, like: (x.type_as(like), x.to(like), x.to("cpu", torch.int32), x.to(dtype=torch.int32), x.half()), x, like
    ).accepted()
    OpCase(lambda x: torch.ops.aten._to_copy(x, dtype=torch.int32), x).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: x.to(torch.int64), rand(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(lambda x: x.to(torch.bfloat16), rand(3, 5), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_refusals() -> None:
    OpCase(lambda x: x.double(), rand(3)).refused("float64", on="openvino")
    OpCase(lambda x: x.to(torch.float8_e4m3fn), rand(3)).refused("float8_e4m3fn", on="openvino")


def test_casts_to_fp8_and_back_are_pairs_of_scale_1() -> None:
    scale = torch.tensor(2.0**-6)

    def network(x: Tensor) -> Tensor:
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale

    for dtype in (torch.float32, torch.bfloat16):
        x = rand(31, 7, low=-12.0, high=12.0).to(dtype)
        case = OpCase(network, x)
        names = [type(node.op).__name__ for node in case.graph().nodes]
        assert names.index("Dequantize") == names.index("Quantize") + 1
        assert torch.equal(interpret(case.graph(), [x])[0], network(x))


def test_integers_are_no_fp8() -> None:
    OpCase(lambda x: x.to(torch.float8_e4m3fn).to(torch.float32), rand(3).to(torch.int32)).refused("it takes floating numbers")
    OpCase(lambda x: x.to(torch.float8_e4m3fn).to(torch.int32), rand(3)).refused("gives a wider floating dtype")
    OpCase(lambda x: x.to(torch.float8_e5m2).to(torch.float32), rand(3)).refused("which the IR does not have")
