"""Tensors without elements, without dimensions, with one, with many; and windows and sizes that do not come out even."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.backends.cases import I64, Case, case, rand, whole
from tests.backends.tensorrt.checks import check
from tests.backends.tensorrt.test_ops import weights
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.errors import Unsupported

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
EMPTY, NONE, SCALAR, VECTOR, MANY = torch.zeros(0, 3), torch.zeros(0).long(), torch.tensor(2.5), rand(5), rand(2, 1, 2, 1, 3, 2, 2)
WINDOWS: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True}

WITHOUT_ELEMENTS: list[Case] = [
    *(case("Unary", EMPTY, function=f) for f in ("relu", "expm1")),
    case("Binary", EMPTY, rand(3), function="add"),
    case("Concat", EMPTY, rand(2, 3), dim=0),
    case("Concat", EMPTY, EMPTY, dim=0),
    case("Slice", rand(4, 3), dim=0, start=2, end=2, step=1),
    *(case("Reduce", EMPTY, function=f, dims=(0,), keepdim=False) for f in ("sum", "prod", "mean")),
    *(case("Reduce", EMPTY.bool(), function=f, dims=(0,), keepdim=False) for f in ("any", "all")),
    case("Gather", rand(4, 3), NONE, dim=0),
    case("MatMul", EMPTY, rand(3, 2)),
    case("MatMul", rand(3, 0), rand(0, 2)),
    case("Linear", EMPTY, rand(2, 3), rand(2)),
    case("Reshape", EMPTY, shape=(3, 0)),
    case("Permute", EMPTY, dims=(1, 0)),
    case("Expand", rand(1, 3), shape=(0, 3)),
    case("Pad", EMPTY, before=(1, 0), after=(1, 0), mode="constant", value=1.0),
    case("Arange", start=0, step=1, size=0, dtype=I64),
    case("Softmax", EMPTY, dim=1),
    case("LayerNorm", EMPTY, rand(3), rand(3), dims=1, eps=1e-5),
    case("Where", EMPTY.bool(), EMPTY, EMPTY),
    case("ScatterRows", rand(4, 3), NONE, EMPTY, accumulate=False),
    case("TopK", rand(3, 4), k=0, dim=1, largest=True, stable=True),
]  # fmt: skip
WITHOUT_DIMENSIONS: list[Case] = [
    *(case("Unary", SCALAR, function=f) for f in ("relu", "expm1", "isfinite", "sign")),
    case("Binary", SCALAR, rand(3), function="remainder"),
    case("Reduce", SCALAR, function="sum", dims=(), keepdim=False),
    case("Reshape", SCALAR, shape=(1, 1)),
    case("Expand", SCALAR, shape=(2, 3)),
    case("Permute", SCALAR, dims=()),
    case("Where", torch.tensor(True), SCALAR, SCALAR),
    case("Clamp", SCALAR, low=0, high=1),
    case("Gelu", SCALAR, approximate="none"),
    case("Elu", SCALAR, alpha=1.0, scale=1.0, input_scale=1.0),
    case("LeakyRelu", SCALAR, slope=0.1),
    case("Cast", SCALAR, dtype=I64),
    case("Gather", rand(4, 3), torch.tensor(2), dim=1),
    case("Quantize", SCALAR, torch.tensor(0.5), dtype=torch.int8, low=-128, high=127, axis=None),
]  # fmt: skip
WITH_ONE: list[Case] = [
    *(case(name, VECTOR, dim=0) for name in ("Softmax", "LogSoftmax")),
    *(case("Cumulative", VECTOR, function=f, dim=0) for f in ("sum", "prod")),
    case("TopK", VECTOR, k=2, dim=0, largest=True, stable=True),
    case("ArgReduce", VECTOR, function="max", dim=0, keepdim=False),
    case("LayerNorm", VECTOR, dims=1, eps=1e-5),
    case("RmsNorm", VECTOR, VECTOR, dims=1, eps=1e-5),
    case("GatherElements", VECTOR, whole(3), dim=0),
    case("ScatterElements", VECTOR, torch.tensor([1]), rand(1), dim=0, reduction="sum"),
    case("ScatterRows", VECTOR, torch.tensor([1, 1]), rand(2), accumulate=True),
    case("Reduce", VECTOR, function="l2", dims=(0,), keepdim=False),
    case("Tile", VECTOR, repeats=(3,)),
    case("Pad", VECTOR, before=(2,), after=(1,), mode="constant", value=0.0),
]  # fmt: skip
WITH_MANY: list[Case] = [
    case("TopK", MANY, k=2, dim=0, largest=True, stable=True),
    case("ArgReduce", MANY, function="max", dim=0, keepdim=True),
    case("Softmax", MANY, dim=0),
    case("Cumulative", MANY, function="sum", dim=0),
    case("LayerNorm", MANY, dims=2, eps=1e-5),
    case("Unary", MANY, function="expm1"),
    case("MatMul", MANY, rand(2, 4)),
    case("Reduce", MANY, function="mean", dims=(0, 2, 4, 6), keepdim=False),
    case("Permute", MANY, dims=(6, 5, 4, 3, 2, 1, 0)),
    case("GatherElements", MANY, MANY.long() * 0, dim=0),
    case("Attention", rand(2, 1, 2, 5, 8), rand(2, 3, 2, 7, 8), rand(2, 3, 2, 7, 8), scale=0.3, causal=False),
    case("Attention", rand(3, 5, 8), rand(3, 7, 8), rand(3, 7, 8), scale=0.3, causal=True),
]  # fmt: skip
UNEVEN: list[Case] = [
    case("TopK", rand(1, 5000), k=10, dim=1, largest=True, stable=True),
    case("AdaptiveAvgPool", rand(1, 2, 7), output=(3,)),
    case("AdaptiveAvgPool", rand(1, 2, 5, 6, 7), output=(2, 3, 3)),
    case("AdaptiveMaxPool", rand(1, 2, 7), output=(3,)),
    case("Resize", rand(1, 2, 7), size=(13,), mode="linear", align_corners=True, scales=None),
    case("Resize", rand(1, 2, 7), size=(13,), mode="nearest", align_corners=False, scales=None),
    case("Resize", rand(1, 2, 3, 4, 5), size=(5, 6, 7), mode="linear", align_corners=False, scales=None),
    *(case("Resize", rand(1, 2, 7, 7), size=(17, 17), mode=m, scales=(2.5, 2.5)) for m in ("nearest", "linear", "cubic")),
    case("Resize", rand(1, 2, 7, 7), size=(14, 14), mode="linear", scales=(2.0, 2.0)),
    case("Resize", rand(1, 2, 7, 7), size=(3, 3), mode="cubic", align_corners=True),
    case("MaxPool", rand(1, 2, 7, 7), kernel=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(2, 2), ceil_mode=False),
    # rounded up, the last window of the width would start in the padding
    case("MaxPool", rand(1, 2, 9, 11), **WINDOWS, dilation=(1, 1)),
    case("MaxPoolIndices", rand(1, 2, 9, 11), **WINDOWS, dilation=(1, 1)),
    *(case("AvgPool", rand(1, 2, 9, 11), **WINDOWS, count_include_pad=c, divisor=d) for c in (False, True) for d in (0, 5)),
]  # fmt: skip
SHAPES = [*WITHOUT_ELEMENTS, *WITHOUT_DIMENSIONS, *WITH_ONE, *WITH_MANY, *UNEVEN]


@pytest.mark.parametrize("case", SHAPES, ids=[f"{number}-{c}" for number, c in enumerate(SHAPES)])
def test_an_op(case: Case) -> None:
    check(case.make(), *case.inputs, constants=weights(case))


def test_more_is_not_sorted_out_than_tensorrt_does() -> None:
    op = case("TopK", k=4000, dim=1, largest=True, stable=True).make()
    with pytest.raises(Unsupported, match="TensorRT sorts out at most 3840 elements, and 4000 are asked for"):
        check(op, rand(1, 5000))
