"""Every op's network computes what the op means, and builds; what TensorRT cannot take is refused, for the reasons here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.cases import BF16, CASES, F32, FLOATS, Case
from tests.backends.tensorrt.checks import check
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.errors import Unsupported

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
# The inputs that models have as weights, by their numbers.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNorm": (1, 2, 3, 4),
    "Convolution": (1, 2),
    "ConvolutionTransposed": (1, 2),
    "Dequantize": (1,),
    "GroupNorm": (1, 2),
    "LayerNorm": (1, 2),
    "Linear": (1, 2),
    "PRelu": (1,),
    "Quantize": (1, 2),
    "RmsNorm": (1,),
}
# By the case, and the dtype where only one is refused.
REFUSED: dict[str, str] = {
    "Unary-lgamma-3x7": "TensorRT has no lgamma",
    **{
        f"Binary-{name}-3x1x7": f"TensorRT has no {name} of integers, but of bools alone"
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor")
    },
    "Cast-torch.float64-3x5x7": "TensorRT does not compute in torch.float64",
    **{
        f"GridSample-bilinear-zeros-1x2x5x6x7-{dtype}": (
            f"TensorRT samples images of two dimensions at a grid, and here is {short}[1, 2, 5, 6, 7]"
        )
        for dtype, short in (("float32", "f32"), ("float16", "f16"), ("bfloat16", "bf16"))
    },
    "MatMul-2x3x8-int64": "TensorRT multiplies matrices of floating numbers alone; cast integers before it",
}


def given(case: Case, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in case.inputs]


def weights(case: Case) -> tuple[int, ...]:
    return tuple(number for number in WEIGHTS.get(case.op, ()) if number < len(case.inputs))


def pairs(cases: list[Case], dtypes: tuple[torch.dtype, ...] = FLOATS) -> list[Any]:
    found = []
    for number, case in enumerate(CASES):
        if not any(case is one for one in cases):
            continue
        floating = any(t.is_floating_point() for t in case.inputs)
        own = dtypes if len(case.dtypes) > 1 else tuple(case.dtypes)
        if case.op == "TopK" and not case.attributes["stable"]:
            own = tuple(dtype for dtype in own if dtype != BF16)  # which rounds its numbers to equal ones, in any order
        for dtype in own if floating else (F32,):
            found.append(pytest.param(case, dtype, id=f"{number}-{case}" + (f"-{str(dtype)[6:]}" if floating else "")))
    return found


def refusal_of(case: Case, inputs: list[Tensor]) -> str | None:
    named = [f"{case}-{str(t.dtype)[6:]}" for t in inputs[:1]]
    return next((REFUSED[name] for name in (*named, str(case)) if name in REFUSED), None)


def takes(case: Case, dtype: torch.dtype, constants: tuple[int, ...]) -> None:
    inputs = given(case, dtype)
    reason = refusal_of(case, inputs)
    if reason is None:
        check(case.make(), *inputs, constants=constants)
        return
    with pytest.raises(Unsupported) as refusal:
        check(case.make(), *inputs, constants=constants)
    assert str(refusal.value) == reason


@pytest.mark.parametrize(("case", "dtype"), pairs(CASES))
def test_an_op(case: Case, dtype: torch.dtype) -> None:
    takes(case, dtype, weights(case))


@pytest.mark.parametrize(("case", "dtype"), pairs([case for case in CASES if weights(case)], (BF16,)))
def test_an_op_whose_weights_come_from_elsewhere(case: Case, dtype: torch.dtype) -> None:
    takes(case, dtype, ())
