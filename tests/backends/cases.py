"""A case or more of every op of the IR, which each backend's tests go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchsmith.ir.op import REGISTRY, Op
from torchsmith.ops import binary, compare, reduce, unary
from torchsmith.ops.registry import load_all

load_all()
F16, BF16, F32, I64, BOOL = torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool
FLOATS = (F32, F16, BF16)


def rand(*shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape) + 7)) * (high - low) + low


def whole(*shape: int, low: int = 0, high: int = 5) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape) + 11))


@dataclass(frozen=True)
class Case:
    """An op by its name in the registry, its attributes, and its inputs, of which floating ones are tried in each of dtypes."""

    op: str
    inputs: Sequence[Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    dtypes: Sequence[torch.dtype] = (F32, F16)

    def __str__(self) -> str:
        shown = [str(v) for v in self.attributes.values() if isinstance(v, (str, torch.dtype))]
        return "-".join([self.op, *shown, *(["x".join(map(str, self.inputs[0].shape))] if self.inputs else [])])

    def make(self) -> Op:
        return REGISTRY[self.op](**self.attributes)


def case(op: str, *inputs: Tensor, dtypes: Sequence[torch.dtype] = (F32, F16), **attributes: Any) -> Case:
    return Case(op, inputs, attributes, dtypes)


EIGHTHS = torch.tensor([0.125, 0.25, 0.5, 0.125, 0.0625])
X, IMAGE, LINE, VOLUME = rand(3, 5, 7), rand(2, 4, 9, 11), rand(2, 4, 13), rand(1, 2, 5, 6, 7)
PLACES = rand(2, 6, 5, 2, low=-1.7, high=1.7)
POOL2: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "ceil_mode": False}
ROW: dict[str, Any] = {"kernel": (3,), "stride": (2,), "padding": (1,), "dilation": (1,), "ceil_mode": True}
MEAN2: dict[str, Any] = {
    "kernel": (3, 2),
    "stride": (2, 1),
    "padding": (1, 1),
    "ceil_mode": True,
    "count_include_pad": False,
    "divisor": 0,
}
CONV2: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (1, 1)), "dilation": (1, 1), "groups": 2}
HEADS, KEYS = rand(2, 2, 5, 16), rand(2, 2, 7, 16)
SEEN = whole(5, 7, high=2).bool() | (torch.arange(7) == 0)
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(kind: str, reverse: bool) -> Case:
    states = [rand(2, 4)] * (2 if kind == "lstm" else 1)
    rows = GATES[kind] * 4
    return case(
        "Recurrent", rand(2, 5, 3), *states, rand(rows, 3), rand(rows, 4), rand(rows), rand(rows), kind=kind, reverse=reverse
    )


CASES: list[Case] = [
    *(case("Unary", rand(3, 7, low=0.1, high=0.9), function=f) for f in unary.FLOATING if f != "acosh"),
    case("Unary", rand(3, 7, low=1.1, high=3.0), function="acosh"),
    *(case("Unary", X, function=f) for f in unary.KEEPING if f != "bitwise_not"),
    *(case("Unary", X, function=f) for f in ("isnan", "isinf", "isfinite")),
    *(case("Unary", whole(3, 4), function=f) for f in ("abs", "neg", "sign", "relu", "bitwise_not")),
    case("Unary", whole(3, 4, high=2).bool(), function="logical_not"),
    *(case("Binary", rand(3, 1, 7, low=0.5), rand(5, 7, low=0.5), function=f) for f in (*binary.ARITHMETIC, *binary.FLOATING)),
    *(case("Binary", whole(3, 1, 7, low=1), whole(5, 7, low=1), function=f) for f in (*binary.ARITHMETIC, *binary.BITWISE)),
    *(case("Binary", whole(3, 7, high=2).bool(), whole(7, high=2).bool(), function=f) for f in ("add", "mul", "bitwise_xor")),
    *(case("Compare", whole(3, 7), whole(7), function=f) for f in compare.FUNCTIONS),
    case("Compare", X, rand(7), function="lt"),
    *(case("Reduce", X, function=f, dims=(0, 2), keepdim=False) for f in reduce.FUNCTIONS if f not in ("any", "all")),
    *(case("Reduce", whole(3, 7, high=2).bool(), function=f, dims=(1,), keepdim=True) for f in ("any", "all")),
    *(case("Reduce", whole(3, 7), function=f, dims=(0, 1), keepdim=True) for f in ("sum", "max", "min", "prod")),
    *(case("ArgReduce", x, function=f, dim=1, keepdim=True) for f in ("max", "min") for x in (X, whole(3, 7))),
    *(case("Cumulative", x, function=f, dim=1) for f in ("sum", "prod") for x in (rand(3, 7, low=0.5, high=1.5), whole(3, 7))),
    *(case("Cast", X, dtype=d) for d in (torch.float64, F16, BF16, I64, torch.int32, torch.uint8, BOOL)),
    *(case("Cast", whole(3, 7), dtype=d) for d in (F16, F32, torch.int8, BOOL)),
    *(case("Gelu", X, approximate=a) for a in ("none", "tanh")),
    case("LeakyRelu", X, slope=0.1),
    case("Elu", X, alpha=0.7, scale=1.1, input_scale=0.9),
    case("PRelu", IMAGE, rand(4, 1, 1)),
    case("Clamp", X, low=-0.5, high=None),
    case("Clamp", whole(3, 7), low=1, high=3),
    case("Where", whole(3, 7, high=2).bool(), rand(7), rand(3, 1)),
    case("Where", whole(3, 7, high=2).bool(), whole(7), whole(3, 1)),
    case("Softmax", X, dim=1),
    case("LogSoftmax", X, dim=2),
    case("Arange", start=1, step=2, size=5, dtype=I64),
    case("Arange", start=0.5, step=0.25, size=5, dtype=F32),
    case("Size", size=17),
    case("Concat", X, rand(3, 2, 7), dim=1),
    case("Concat", whole(3, 7), whole(2, 7), dim=0),
    case("Expand", rand(3, 1, 7), shape=(2, 3, 5, 7)),
    case("Tile", X, repeats=(2, 1, 3)),
    case("Permute", X, dims=(2, 0, 1)),
    case("Reshape", X, shape=(5, 21)),
    case("Slice", X, dim=1, start=1, end=5, step=2),
    case("Pad", X, before=(0, 1, 2), after=(1, 0, 3), mode="constant", value=0.5),
    case("Pad", whole(3, 5, 7), before=(0, 1, 2), after=(1, 0, 3), mode="constant", value=2.0),
    *(case("Pad", IMAGE, before=(0, 0, 1, 2), after=(0, 0, 2, 1), mode=m) for m in ("reflect", "replicate", "circular")),
    case("Gather", X, whole(2, 3), dim=1),
    case("Gather", whole(9, 4), whole(3).int(), dim=0),
    case("GatherElements", X, whole(3, 2, 7), dim=1),
    case("GatherElements", X, whole(3, 2, 7).int(), dim=1),
    *(case("ScatterElements", X, torch.tensor([4, 0]).view(1, 2, 1).expand(3, 2, 7).clone(), rand(3, 2, 7), dim=1, reduction=r)
      for r in ("none", "sum", "prod", "amax", "amin")),
    *(case("ScatterRows", rand(7, 3), torch.tensor([1, 5, 2]), rand(3, 3), accumulate=a) for a in (False, True)),
    case("ScatterRows", rand(7, 3), torch.tensor([1, 1, 2]), rand(3, 3), accumulate=True),
    *(case("TopK", x, k=3, dim=1, largest=True, stable=True) for x in (X, whole(3, 300, high=1000))),
    case("TopK", torch.randperm(2000).float().reshape(1, -1), k=2000, dim=1, largest=False, stable=False),
    case("Linear", X, rand(6, 7), rand(6)),
    case("Linear", rand(7), rand(6, 7)),
    case("MatMul", rand(2, 1, 3, 8), rand(5, 8, 4)),
    case("MatMul", whole(2, 3, 8), whole(8, 4)),
    case("LayerNorm", X, rand(7), rand(7), dims=1, eps=1e-5),
    case("LayerNorm", X, dims=2, eps=1e-5),
    case("RmsNorm", X, rand(7), dims=1, eps=1e-5),
    case("GroupNorm", IMAGE, rand(4), rand(4), groups=2, eps=1e-5),
    case("BatchNorm", IMAGE, rand(4), rand(4), rand(4), rand(4, low=0.5), eps=1e-5),
    *(case("Attention", HEADS, KEYS, KEYS, *mask, scale=0.25, causal=c) for mask, c in (((), False), ((), True), ((SEEN,), False))),
    case("Attention", HEADS, KEYS, KEYS, rand(5, 7), scale=0.25, causal=False),
    case("Attention", rand(5, 16), rand(7, 16), rand(7, 8), scale=0.25, causal=False),
    case("Convolution", IMAGE, rand(6, 2, 3, 3), rand(6), **CONV2),
    case("Convolution", LINE, rand(6, 4, 3), stride=(1,), padding=((1, 1),), dilation=(2,), groups=1),
    case("Convolution", VOLUME, rand(3, 2, 3, 3, 3), rand(3), stride=(1,) * 3, padding=((1, 1),) * 3, dilation=(1,) * 3, groups=1),
    case("ConvolutionTransposed", IMAGE, rand(4, 3, 3, 3), rand(3),
         stride=(2, 2), padding=(1, 0), dilation=(1, 1), output_padding=(1, 0), groups=1),
    case("MaxPool", IMAGE, **POOL2),
    case("MaxPool", LINE, **ROW),
    case("MaxPool", whole(2, 4, 9, 11), **POOL2),
    case("MaxPoolIndices", IMAGE, **POOL2),
    case("MaxPoolIndices", whole(2, 4, 13, high=1000), **ROW),
    case("AvgPool", IMAGE, **MEAN2),
    case("AvgPool", VOLUME, kernel=(2,) * 3, stride=(2,) * 3, padding=(0,) * 3,
         ceil_mode=False, count_include_pad=True, divisor=3),
    case("AdaptiveAvgPool", IMAGE, output=(4, 5)),
    case("AdaptiveMaxPool", IMAGE, output=(4, 5)),
    *(case("Resize", IMAGE, size=(13, 20), mode=m, align_corners=False, scales=None)
      for m in ("nearest", "nearest-exact", "linear", "cubic")),
    *(case("GridSample", IMAGE, PLACES, mode=m, padding_mode=p, align_corners=c)
      for m in ("bilinear", "nearest", "bicubic") for p, c in (("zeros", False), ("border", True), ("reflection", True))),
    case("GridSample", IMAGE, PLACES, mode="nearest", padding_mode="reflection", align_corners=False),
    case("GridSample", VOLUME, rand(1, 3, 4, 5, 3, low=-1.7, high=1.7), mode="bilinear", padding_mode="zeros", align_corners=False),
    *(recurrent(kind, reverse) for kind in GATES for reverse in (False, True)),
    # by powers of two, so that float32 and float64 round the same numbers
    case("Quantize", X, torch.tensor(0.03125), dtypes=(F32,), dtype=torch.int8, low=-32, high=31, axis=None),
    case("Quantize", X, EIGHTHS, whole(5).to(torch.uint8), dtypes=(F32,), dtype=torch.uint8, low=0, high=255, axis=1),
    *(case("Dequantize", whole(3, 5, 7, low=-9, high=9).to(torch.int8), EIGHTHS, dtypes=(F32,), dtype=d, axis=1) for d in FLOATS),
]  # fmt: skip
