"""What moves data, in every dtype, at sizes that vary, and without elements; loops over steps; and what is made of sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.concat import Concat
from torchsmith.ops.create import Arange
from torchsmith.ops.expand import Expand, Tile
from torchsmith.ops.gather import Gather, GatherElements
from torchsmith.ops.pad import Pad
from torchsmith.ops.permute import Permute
from torchsmith.ops.recurrent import GATES, Recurrent
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.scatter import ScatterElements, ScatterRows
from torchsmith.ops.size import Size
from torchsmith.ops.slice import Slice

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)

from tests.backends.tensorrt.checks import check, check_graph
from torchsmith.backends.tensorrt.emit import refuses

N: Any = symbol("n")
M: Any = symbol("m")
BOTH: list[Any] = [("n", "m")]
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8)
DTYPES = pytest.mark.parametrize("dtype", [*NUMBERS, torch.bool], ids=str)


def some(dtype: torch.dtype) -> Tensor:
    """(4, 6)."""
    return (torch.randn(4, 6) * 3).abs().to(dtype)


def places(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape)


@DTYPES
def test_shapes(dtype: torch.dtype) -> None:
    x = some(dtype)
    check(Reshape((N * 2, 3)), x, shapes=[("n", 6)], more=[[x[:2]]])
    check(Reshape((M, N)), x, shapes=BOTH, more=[[x[:3, :2]]])
    check(Permute((1, 0)), x, shapes=BOTH, more=[[x[:3, :2]]])
    check(Reshape(()), x[:1, :1])
    check(Reshape((1, 1)), x[0, 0])
    check(Expand((5, N, M)), x, shapes=BOTH, more=[[x[:3, :2]]])
    check(Expand((5, 4, 6)), x[:, :1])
    check(Tile((2, 3)), x, shapes=BOTH, more=[[x[:2, :3]]])


@DTYPES
def test_parts(dtype: torch.dtype) -> None:
    x = some(dtype)
    check(Slice(1, 1, 5, 2), x)
    check(Slice(1, M - 2, M), x, shapes=BOTH, more=[[x[:3, :3]]], ranges={"m": (2, 64)})
    check(Slice(1, 0, M, 2), x, shapes=BOTH, more=[[x[:3, :3]]])
    check(Concat(1), x, x[:, :3], shapes=[("n", "m"), ("n", 3)], more=[[x[:2, :2], x[:2, :3]]])
    check(Gather(1), x, places(2, 3, below=6), shapes=[("n", 6), ("m", 3)], more=[[x[:2], places(4, 3, below=6)]])
    check(Gather(0), x, torch.tensor(2, dtype=torch.int32))
    check(GatherElements(0), x, places(3, 6, below=4).int())


@DTYPES
def test_puts(dtype: torch.dtype) -> None:
    x = some(dtype)
    once = torch.stack([torch.randperm(6)[:3] for _ in range(4)])
    check(ScatterElements(1), x, once, x[:, 3:])
    check(ScatterElements(1), x, once[:2], x[:2, 3:])
    rows = torch.tensor([2, 0])
    check(ScatterRows(False), x, rows, x[:2], shapes=[("n", 6), ("m",), ("m", 6)], more=[[x[:3], rows[:1], x[:1]]])


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "prod", "amax", "amin"])
def test_combines(dtype: torch.dtype, reduction: str) -> None:
    x = some(dtype)
    check(ScatterElements(1, reduction), x, places(4, 3, below=6), x[:, :3])
    check(ScatterElements(0, reduction), x, places(3, 6, below=4).int(), x[:3])
    check(ScatterElements(1, reduction), x, places(2, 3, below=6), x[:2, 3:])
    if reduction == "sum":
        check(ScatterRows(True), x, torch.tensor([2, 0, 2]), x[:3])


def test_what_cannot_be_combined_is_refused() -> None:
    x, rows = some(torch.float32), torch.tensor([2, 0])
    with pytest.raises(Unsupported, match="a scatter that combines booleans by sum: TensorRT combines numbers"):
        check(ScatterRows(True), x.bool(), rows, x[:2].bool())
    with pytest.raises(
        Unsupported, match=r"TensorRT's scatter does not combine, and for a sum in its place f32\[n, 6\] and f32\[2, 6"
    ):
        check(ScatterRows(True), x, rows, x[:2], shapes=[("n", 6)])
    big = torch.zeros(5000, 2)
    with pytest.raises(Unsupported, match="TensorRT's scatter does not combine, and a sum in its place compares 50000000 pairs"):
        check(ScatterRows(True), big, places(5000, below=5000), big)


@DTYPES
def test_pads(dtype: torch.dtype) -> None:
    x = some(dtype)
    check(Pad((1, 0), (2, 3), "constant", 1.0), x, shapes=BOTH, more=[[x[:2, :3]]])
    check(Pad((0, N), (M, 0), "constant", 1.0), x, shapes=BOTH, more=[[x[:2, :3]]])
    for mode in ("circular",) if dtype == torch.bool else ("reflect", "replicate", "circular"):  # PyTorch has no others
        check(Pad((0, 1), (0, 2), mode), x, shapes=BOTH, more=[[x[:2, :3]]], ranges={"m": (3, 64)})


@DTYPES
def test_nothing(dtype: torch.dtype) -> None:
    x = some(dtype)
    check(Slice(1, 2, 2), x)
    check(Concat(1), x, x[:, :0])
    check(ScatterRows(False), x, torch.zeros(0, dtype=torch.int64), x[:0])
    check(ScatterElements(0), x, torch.zeros(0, 6, dtype=torch.int64), x[:0])
    check(Pad((1, 0), (1, 0), "constant", 1.0), x[:0])


def test_what_is_not_there_must_have_known_sizes() -> None:
    with pytest.raises(Unsupported, match=r"of no elements gives f32\[n, 0\], whose other sizes must be known"):
        check(Slice(1, 2, 2), some(torch.float32), shapes=BOTH)


def test_tensors_have_at_most_eight_dimensions() -> None:
    check(Reshape((2,) * 8), torch.randn(256))
    refused = "TensorRT's tensors have at most 8 dimensions, and here is f32[2, 2, 2, 2, 2, 2, 2, 2, 2]"
    for op, shape in ((Reshape((2,) * 9), (512,)), (Reshape((512,)), (2,) * 9)):
        with Builder() as b:
            (node,) = b.finish([op(b.input(TensorType(shape, torch.float32)))]).nodes
        assert refuses(node) == refused


@pytest.mark.parametrize(
    ("start", "step", "dtype"),
    [(0, 1, torch.int64), (N, 2, torch.int32), (0.5, 0.25, torch.float16), (0, N, torch.float32), (3, -1, torch.float32)],
)
def test_ranges(start: Any, step: Any, dtype: torch.dtype) -> None:
    check_graph(made(lambda: Arange(start, step, N, dtype)()), [torch.zeros(5, 3)], [torch.zeros(1, 2)])
    if not isinstance(step, type(N)) and not isinstance(start, type(N)):
        check_graph(made(lambda: Arange(start, step, 7, dtype)()), [torch.zeros(5, 3)])


def test_sizes_as_values() -> None:
    check_graph(made(lambda: Size(N * M + 2)()), [torch.zeros(5, 3)], [torch.zeros(1, 2)])


def made(function: Callable[[], Value]) -> Graph:
    """A graph with an input of (n, m), and beside it what is made of those sizes."""
    with Builder({"n": (1, 64), "m": (1, 64)}) as b:
        x = b.input(TensorType((N, M), torch.float32))
        return b.finish([function(), Permute((1, 0))(x)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", [0, 2])
def test_loops(dtype: torch.dtype, kind: str, reverse: bool, biases: int) -> None:
    op, rows = Recurrent(kind, reverse), GATES[kind] * 8
    weights = [torch.randn(*shape).to(dtype) * 0.3 for shape in ((rows, 6), (rows, 8), *[(rows,)] * biases)]

    def moving(batch: int, steps: int) -> list[Tensor]:
        return [torch.randn(batch, steps, 6).to(dtype), *(torch.randn(batch, 8).to(dtype) for _ in range(op.states))]

    constants = range(1 + op.states, 1 + op.states + len(weights))
    shapes: list[Any] = [("n", "m", 6), *[("n", 8)] * op.states]
    build = dtype == torch.float16
    check(op, *moving(3, 5), *weights, constants=constants, shapes=shapes, more=[moving(2, 7), moving(1, 1)], build=build)
