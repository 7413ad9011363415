"""Padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter
from torchsmith.ops.slice import sliced

aten = torch.ops.aten


@dataclass(frozen=True)
class Pad(Op):
    """x with before[i] and after[i] elements more (none negative) around dimension i.

    mode: "constant" (`value`), "reflect", "replicate" or "circular". Source: aten.pad.
    """

    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    mode: str = "constant"
    value: float = 0.0

    def infer(self, x: TensorType) -> TensorType:
        assert len(self.before) == len(self.after) == x.rank, f"{self} of {x}"
        return x.with_shape(*(simplify(b + size + a) for b, size, a in zip(self.before, x.shape, self.after)))

    def reference(self, x: Tensor) -> Tensor:
        sides = [n for pair in zip(reversed(self.before), reversed(self.after)) for n in pair]
        if self.mode == "constant":
            return torch.nn.functional.pad(x, sides, value=self.value)
        while sides and sides[-2:] == [0, 0]:
            sides = sides[:-2]
        if not sides:
            return x
        # PyTorch pads the last dimensions of a batch, so the ones before them are made one
        kept = x.dim() - len(sides) // 2
        padded = torch.nn.functional.pad(x.reshape(-1, *x.shape[kept:]), sides, self.mode)
        return padded.reshape(*x.shape[:kept], *padded.shape[1:])


def padded(x: Value, sides: list[Dim], mode: str, value: float | None) -> Value:
    """sides: before and after of the last dimension, then of the one before, and so on; negative ones crop."""
    rank = x.type.rank
    before: list[Dim] = [0] * rank
    after: list[Dim] = [0] * rank
    for i in range(len(sides) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = sides[2 * i], sides[2 * i + 1]
    for axis in range(rank):
        low, high = before[axis], after[axis]
        cut = [isinstance(n, int) and n < 0 for n in (low, high)]
        if any(cut):
            if mode != "constant":
                raise Unsupported(f"a {mode} padding of {sides}, which crops")
            size = x.type.shape[axis]
            x = sliced(x, axis, -low if cut[0] else 0, simplify(size + high) if cut[1] else size)
            before[axis], after[axis] = (0 if cut[0] else low), (0 if cut[1] else high)
    if all(n == 0 for n in (*before, *after)):
        return x
    return Pad(tuple(before), tuple(after), mode, float(value or 0.0))(x)


@converter(aten.pad.default)
def pad(x: Value, pad: list[Dim], mode: str = "constant", value: float | None = None) -> Value:
    return padded(x, pad, mode, value)


@converter(aten.constant_pad_nd.default)
def constant_pad_nd(x: Value, pad: list[Dim], value: float = 0) -> Value:
    return padded(x, pad, "constant", value)


@converter(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
def reflection_pad(x: Value, padding: list[Dim]) -> Value:
    return padded(x, padding, "reflect", None)


@converter(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def replication_pad(x: Value, padding: list[Dim]) -> Value:
    return padded(x, padding, "replicate", None)


@converter(aten._pad_circular.default)
def circular_pad(x: Value, pad: list[Dim]) -> Value:
    return padded(x, pad, "circular", None)
