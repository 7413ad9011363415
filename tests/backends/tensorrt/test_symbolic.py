"""Ops on tensors whose sizes are known as the engine runs: evaluated at several sizes of one network, which also builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv, Mod

from tests.backends.cases import F16, F32, I64, rand, whole
from tests.backends.tensorrt.checks import check_graph
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import Dim, bind, symbol
from torchsmith.ir.graph import Graph
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ops import reduce
from torchsmith.ops.registry import load_all

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
load_all()
N, M = symbol("n"), symbol("m")
RANGES: dict[str, tuple[int, int | None]] = {"n": (1, 16), "m": (2, 32)}
SIZES = ({"n": 3, "m": 5}, {"n": 1, "m": 2}, {"n": 4, "m": 9})


@dataclass(frozen=True)
class Given:
    """An input: its shape, and what makes one of a shape in numbers."""

    shape: tuple[Dim, ...]
    make: Callable[..., Tensor]


def floats(*shape: Dim) -> Given:
    return Given(shape, rand)


def ints(*shape: Dim, high: int = 5) -> Given:
    return Given(shape, lambda *numbers: whole(*numbers, high=high))


def bools(*shape: Dim) -> Given:
    return Given(shape, lambda *numbers: whole(*numbers, high=2).bool())


@dataclass(frozen=True)
class Dynamic:
    """An op by its name, its inputs (those that are tensors are weights), and its attributes."""

    op: str
    inputs: Sequence[Given | Tensor]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        shown = [str(v) for v in self.attributes.values() if isinstance(v, str)]
        shown += ["summed"] if self.attributes.get("accumulate") else []
        first = next((v.shape for v in self.inputs if isinstance(v, Given)), ())
        return "-".join([self.op, *shown, "x".join(str(size) for size in first)])

    def graph(self, dtype: torch.dtype) -> Graph:
        """One more input, of size (n, m), is where the sizes can be read of ops that have no inputs."""
        with Builder(RANGES) as b:
            values = []
            for given in self.inputs:
                if isinstance(given, Given):
                    values.append(b.input(TensorType(given.shape, _as(given.make(*[1] * len(given.shape)), dtype).dtype)))
                else:
                    values.append(b.constant(given if self.op == "Quantize" else _as(given, dtype)))
            b.input(type_of(torch.empty(0, 0)).with_shape(N, M))
            results = REGISTRY[self.op](**self.attributes)(*values)
            return b.finish(list(results) if isinstance(results, tuple) else [results])

    def given(self, dtype: torch.dtype, env: dict[str, int]) -> list[Tensor]:
        moving = [_as(i.make(*bind(i.shape, env)), dtype) for i in self.inputs if isinstance(i, Given)]
        return [*moving, torch.zeros(env["n"], env["m"])]


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def dynamic(op: str, *inputs: Given | Tensor, **attributes: Any) -> Dynamic:
    return Dynamic(op, inputs, attributes)


X, ROWS, IMAGE, LINE = floats(N, M, 6), floats(N, 6), floats(N, 4, 9, M), floats(N, 4, M)
HEADS = floats(N, 2, M, 16)
POOL2 = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "ceil_mode": False}
STATE = [rand(16, 3), rand(16, 4), rand(16), rand(16)]
CONV = {"stride": (2, 1), "padding": ((1, 0), (1, 1)), "dilation": (1, 1), "groups": 2}

CASES: list[Dynamic] = [
    *(dynamic("Unary", X, function=f) for f in ("relu", "silu", "sign", "expm1", "softplus", "isfinite", "trunc")),
    *(dynamic("Binary", X, floats(M, 1), function=f) for f in ("add", "remainder", "div", "maximum", "copysign")),
    dynamic("Binary", floats(M), floats(N, 1, 1), function="sub"),
    dynamic("Binary", ints(N, M), ints(M), function="mul"),
    *(dynamic("Compare", X, floats(M, 6), function=f) for f in ("lt", "ge", "ne")),
    *(dynamic("Reduce", X, function=f, dims=(1,), keepdim=False) for f in reduce.FUNCTIONS if f not in ("any", "all")),
    dynamic("Reduce", X, function="mean", dims=(0, 1, 2), keepdim=False),
    *(dynamic("Reduce", bools(N, M), function=f, dims=(1,), keepdim=True) for f in ("any", "all")),
    *(dynamic("ArgReduce", X, function="max", dim=dim, keepdim=False) for dim in (1, 2)),
    *(dynamic("Cumulative", X, function=f, dim=1) for f in ("sum", "prod")),
    dynamic("Cumulative", ints(N, M), function="sum", dim=1),
    dynamic("Cast", X, dtype=I64),
    dynamic("Gelu", X, approximate="tanh"),
    dynamic("Elu", X, alpha=0.7, scale=1.1, input_scale=0.9),
    dynamic("LeakyRelu", X, slope=0.1),
    dynamic("PRelu", IMAGE, rand(4, 1, 1)),
    dynamic("Clamp", X, low=-0.5, high=None),
    dynamic("Where", bools(N, M), floats(M), floats(N, 1)),
    *(dynamic("Softmax", X, dim=dim) for dim in (0, 1, 2)),
    dynamic("LogSoftmax", X, dim=1),
    dynamic("Arange", start=0, step=1, size=M, dtype=I64),
    dynamic("Arange", start=N, step=M, size=M + 1, dtype=I64),
    dynamic("Arange", start=0.5, step=0.25, size=N * M, dtype=F32),
    *(dynamic("Size", size=size) for size in (N, 2 * M + 1, N * M, M**2, FloorDiv(M, 2), Mod(M, 2))),
    dynamic("Concat", X, floats(N, 2, 6), floats(N, N, 6), dim=1),
    dynamic("Concat", X, floats(2, M, 6), dim=0),
    dynamic("Expand", floats(N, 1, 6), shape=(2, N, M, 6)),
    dynamic("Expand", floats(1, 1), shape=(N, M)),
    dynamic("Expand", rand(1, 3), shape=(M, 3)),
    dynamic("Tile", X, repeats=(2, 1, 3)),
    dynamic("Tile", floats(N, 3), repeats=(M, 2)),
    dynamic("Permute", X, dims=(2, 0, 1)),
    *(dynamic("Reshape", X, shape=s) for s in ((N * M, 6), (N, 6 * M), (M, N, 2, 3), (N, M, 1, 6), (6, N, M), (6 * N * M,))),
    dynamic("Slice", X, dim=1, start=0, end=M - 1, step=1),
    dynamic("Slice", X, dim=1, start=M - 2, end=M, step=1),
    dynamic("Slice", X, dim=1, start=1, end=M, step=2),
    dynamic("Slice", X, dim=2, start=1, end=5, step=3),
    dynamic("Slice", floats(32, 6), dim=0, start=0, end=M, step=1),
    dynamic("Pad", X, before=(0, 1, 2), after=(1, 0, 3), mode="constant", value=0.5),
    dynamic("Pad", X, before=(0, N, 0), after=(0, M, 0), mode="constant", value=-1.0),
    *(dynamic("Pad", IMAGE, before=(0, 0, 1, 1), after=(0, 0, 2, 1), mode=m) for m in ("reflect", "replicate", "circular")),
    dynamic("Gather", floats(9, 4), ints(N, M), dim=0),
    dynamic("Gather", X, ints(M), dim=2),
    dynamic("Gather", rand(9, 4), ints(N, M), dim=0),
    dynamic("GatherElements", X, ints(N, M, 2), dim=2),
    dynamic("ScatterElements", X, ints(N, M, 1), floats(N, M, 1), dim=2, reduction="none"),
    dynamic("ScatterElements", X, ints(N, M, 2), floats(N, M, 2), dim=2, reduction="sum"),
    dynamic("ScatterRows", floats(7, M), torch.tensor([1, 5, 2]), floats(3, M), accumulate=False),
    dynamic("ScatterRows", floats(7, M), torch.tensor([1, 5, 1]), floats(3, M), accumulate=True),
    dynamic("TopK", X, k=3, dim=2, largest=True, stable=True),
    dynamic("TopK", X, k=2, dim=1, largest=False, stable=True),
    dynamic("TopK", X, k=M, dim=1, largest=True, stable=True),
    dynamic("Linear", X, rand(5, 6), rand(5)),
    dynamic("Linear", X, rand(5, 6)),
    dynamic("MatMul", X, floats(N, 6, M)),
    dynamic("MatMul", floats(N, 2, M, 6), floats(6, 3)),
    dynamic("LayerNorm", X, rand(6), rand(6), dims=1, eps=1e-5),
    dynamic("LayerNorm", X, dims=1, eps=1e-5),
    dynamic("RmsNorm", X, rand(6), dims=1, eps=1e-5),
    dynamic("GroupNorm", IMAGE, rand(4), rand(4), groups=2, eps=1e-5),
    dynamic("GroupNorm", IMAGE, rand(4), rand(4), groups=1, eps=1e-5),
    dynamic("BatchNorm", IMAGE, rand(4), rand(4), rand(4), rand(4, low=0.5), eps=1e-5),
    *(dynamic("Attention", HEADS, HEADS, HEADS, scale=0.25, causal=causal) for causal in (False, True)),
    dynamic("Attention", HEADS, HEADS, HEADS, floats(M, M), scale=0.25, causal=False),
    dynamic("Attention", HEADS, floats(N, 2, 7, 16), floats(N, 2, 7, 8), bools(N, 1, 1, 7), scale=0.25, causal=False),
    dynamic("Convolution", IMAGE, rand(6, 2, 3, 3), rand(6), **CONV),
    dynamic("Convolution", LINE, rand(6, 4, 3), stride=(1,), padding=((1, 1),), dilation=(1,), groups=1),
    dynamic("ConvolutionTransposed", IMAGE, rand(4, 3, 3, 3), rand(3),
            stride=(2, 2), padding=(1, 0), dilation=(1, 1), output_padding=(1, 0), groups=1),
    dynamic("MaxPool", IMAGE, **POOL2, dilation=(1, 1)),
    dynamic("AvgPool", IMAGE, **POOL2, count_include_pad=False, divisor=0),
    dynamic("AvgPool", IMAGE, **POOL2, count_include_pad=True, divisor=0),
    dynamic("AdaptiveAvgPool", floats(N, 4, 9, 8), output=(4, 5)),
    dynamic("AdaptiveAvgPool", IMAGE, output=(1, 1)),
    *(dynamic("Resize", floats(N, 4, 9, 11), size=(13, 20), mode=m) for m in ("nearest", "nearest-exact", "linear", "cubic")),
    *(dynamic("Resize", IMAGE, size=(18, 2 * M), mode=m) for m in ("nearest", "linear")),
    dynamic("GridSample", IMAGE, floats(N, M, 5, 2), mode="bilinear", padding_mode="zeros"),
    *(dynamic("Recurrent", floats(N, M, 3), floats(N, 4), floats(N, 4), *STATE, kind="lstm", reverse=r) for r in (False, True)),
    dynamic("Quantize", X, torch.tensor(0.03125), dtype=torch.int8, low=-128, high=127, axis=None),
]  # fmt: skip
COMBINES = "TensorRT's scatter does not combine, and for a sum in its place"
REFUSED = {
    "ScatterElements-sum-nxmx6": f"{COMBINES} f32[n, m, 6] and f32[n, m, 2] must be known",
    "ScatterRows-summed-7xm": f"{COMBINES} f32[7, m] and f32[3, m] must be known",
    "AdaptiveAvgPool-nx4x9xm": "adaptive pooling from m elements to 1: TensorRT's windows must be known as it builds",
}


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{c}" for number, c in enumerate(CASES)])
def test_an_op(case: Dynamic) -> None:
    if str(case) in REFUSED:
        with pytest.raises(Unsupported) as refusal:
            check_graph(case.graph(F32))
        assert str(refusal.value) == REFUSED[str(case)]
        return
    for dtype in (F32, F16):
        check_graph(case.graph(dtype), *(case.given(dtype, env) for env in SIZES), build=dtype == F16)
