"""Views, strides and where values are placed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import (
    View,
    byte_alignment,
    channels_last,
    contiguous,
    dense_like,
    divisible,
    is_view,
    memory_order,
    order_of,
    place,
    reshaped_strides,
)
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import Dim, Shape, simplify, symbol
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.concat import Concat
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.permute import Permute
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.slice import Slice
from torchsmith.ops.unary import Unary

N = symbol("n")


def half(*shape: Dim) -> TensorType:
    return TensorType(tuple(shape), torch.float16)


@pytest.mark.parametrize(
    ("shape", "strides", "wanted"),
    [
        ((2, 3, 4), (12, 4, 1), (6, 4)),
        ((2, 3, 4), (12, 4, 1), (2, 1, 12)),
        ((24,), (1,), (2, 3, 4)),
        ((2, 3, 4), (24, 4, 1), (2, 12)),
        ((2, 6, 4), (48, 8, 1), (2, 2, 3, 4)),
        ((2, 3, 5), (15, 1, 3), (2, 3, 5, 1)),
        ((4, 6), (1, 4), (2, 2, 6)),
        ((1, 197, 768), (151296, 768, 1), (197, 12, 64)),
        ((2, 1, 3), (3, 7, 1), (6,)),
        ((), (), (1, 1)),
        ((8, 4), (0, 1), (2, 4, 4)),
    ],
)
def test_reshaped_strides_agree_with_pytorch(shape: Any, strides: Any, wanted: Any) -> None:
    storage = torch.arange(1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)))
    x = torch.as_strided(storage, shape, strides)
    found = reshaped_strides(shape, strides, wanted)
    assert found is not None
    assert torch.equal(torch.as_strided(storage, wanted, found), x.reshape(wanted))


@pytest.mark.parametrize(
    ("shape", "strides", "wanted"), [((3, 4), (1, 3), (12,)), ((2, 3, 4), (12, 1, 3), (2, 12)), ((2, 3), (4, 1), (6,))]
)
def test_reshapes_that_only_a_copy_can_do(shape: Any, strides: Any, wanted: Any) -> None:
    assert reshaped_strides(shape, strides, wanted) is None
    with pytest.raises(RuntimeError):
        torch.empty_strided(shape, strides).view(wanted)


@pytest.mark.parametrize(
    ("shape", "wanted", "strides"),
    [
        ((N, 3, 4), (N, 12), (12, 1)),
        ((N, 12), (N, 3, 4), (12, 4, 1)),
        ((N, 3, 4), (3 * N, 4), (4, 1)),
        ((3 * N, 4), (N, 3, 4), (12, 4, 1)),
        ((2, N, 8), (2, N, 2, 4), (8 * N, 8, 4, 1)),
        ((2, 8, N), (16, N), (N, 1)),
    ],
)
def test_reshapes_of_symbolic_sizes(shape: Shape, wanted: Shape, strides: Shape) -> None:
    found = reshaped_strides(shape, contiguous(shape), wanted)
    assert found is not None and all(simplify(a - b) == 0 for a, b in zip(found, strides, strict=True))


def test_divisible() -> None:
    assert divisible(48, 16) and not divisible(40, 16)
    assert divisible(16 * N, 16) and divisible(32 * N + 16, 16)
    assert not divisible(N, 2) and not divisible(16 * N + 8, 16) and not divisible(N * N, 2)


def test_byte_alignment() -> None:
    value = Value("x", half(64))
    assert [byte_alignment(View(value, (1,), at), torch.float16) for at in (0, 8, 3, 4 * N)] == [256, 16, 2, 8]


def test_orders() -> None:
    nhwc = channels_last((2, 8, 4, 4))
    assert order_of(half(2, 8, 4, 4), nhwc) == memory_order((2, 8, 4, 4), nhwc) == (0, 2, 3, 1)
    assert memory_order((2, 8, 4, 4), (256, 1, 64, 16)) == (0, 2, 3, 1)
    assert order_of(half(2, 8, 4, 4), (256, 1, 64, 16)) is None
    assert dense_like(half(2, 8, 4, 4), (0, 2, 3, 1)) == nhwc
    assert memory_order((N, 8, 4), (32, 1, 8)) == (0, 2, 1)
    assert memory_order((4, 8), (0, 1)) == (0, 1)


def joined(channels: tuple[int, ...], output: bool = False) -> tuple[Graph, Node]:
    """1×1 convolutions of one picture, concatenated, and the concatenation's node. output: whether the first is one."""
    with Builder({}) as builder:
        x = builder.input(half(2, 8, 4, 4))
        weights = [builder.constant(torch.zeros(c, 8, 1, 1, dtype=torch.float16)) for c in channels]
        parts = [Convolution((1, 1), ((0, 0), (0, 0)), (1, 1), 1)(x, w) for w in weights]
        whole = Concat(1)(*parts)
        graph = fuse(builder.finish([Permute((0, 2, 3, 1))(whole), *parts[:output]]))
    return graph, next(n for n in graph.nodes if type(n.op).__name__ == "Concat")


def test_parts_are_placed_in_their_concatenation() -> None:
    graph, node = joined((16, 8))
    placed = place(graph)
    (whole,) = node.outputs
    assert placed[whole] == View(whole, channels_last((2, 24, 4, 4)))
    assert [placed[v] for v in node.inputs] == [View(whole, placed[whole].strides, 0), View(whole, placed[whole].strides, 16)]
    assert is_view(node, placed) and placed[graph.outputs[0]].root is whole


@pytest.mark.parametrize(("channels", "output"), [((6, 8), False), ((16, 4, 8), False), ((16, 8, 8), None)])
def test_parts_that_do_not_line_up_are_copied(channels: tuple[int, ...], output: bool | None) -> None:
    graph, node = joined(channels, output is None)
    placed = place(graph)
    in_place = [placed[v].root is node.outputs[0] for v in node.inputs]
    assert not is_view(node, placed)
    assert in_place == ([False, True, True] if output is None else [False] * len(channels))


def test_views_cost_nothing() -> None:
    with Builder({"n": (1, 8)}) as builder:
        x = builder.input(half(N, 8, 6))
        y = Unary("relu")(x)
        views = [Slice(1, 2, 8, 2)(Permute((0, 2, 1))(y)), Reshape((N, 48))(y)]
        graph = builder.finish(views)
    placed = place(graph)
    assert [is_view(n, placed) for n in graph.nodes] == [type(n.op).__name__ != "Unary" for n in graph.nodes]
    first, second = (placed[v] for v in graph.outputs)
    assert first == View(y, (48, 2, 6), 2) and second == View(y, (48, 1))


def test_pictures_are_channels_last_and_weights_as_given() -> None:
    graph, _ = joined((16, 8))
    placed = place(graph)
    assert all(placed[v].strides == contiguous(v.type.shape) for v in (*graph.inputs, *graph.constants))
