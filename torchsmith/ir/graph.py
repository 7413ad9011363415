"""A graph: typed values, and the nodes between them in an order that can be run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor: an input, a constant, or what a node gives. Values are compared by identity."""

    name: str
    type: TensorType

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, eq=False)
class Node:
    """An op applied to values. origin: where it comes from (an ATen op and the user's line), for messages.

    precision: the floating dtype that it is to compute in, until casts say so; None where the engine's own is meant.
    """

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origin: str = ""
    precision: torch.dtype | None = None

    def __repr__(self) -> str:
        return f"{', '.join(v.name for v in self.outputs)} = {self.op}({', '.join(v.name for v in self.inputs)})"


@dataclass(frozen=True, eq=False)
class Graph:
    """A program over tensors.

    inputs: the caller's, in order. constants: tensors known at compile time. ranges: for each symbol of the input shapes
    the least and the greatest size (None: no upper limit). outputs may repeat, and may be inputs or constants. typical: for
    symbols the size to be fastest at, where that is known; passes leave it out.
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[Value, Tensor] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    typical: Mapping[str, int] = field(default_factory=dict)

    def users(self) -> dict[Value, list[Node]]:
        """Every value's consumers, in order."""
        found: dict[Value, list[Node]] = {value: [] for value in self.values()}
        for node in self.nodes:
            for value in node.inputs:
                found[value].append(node)
        return found

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        yield from self.constants
        for node in self.nodes:
            yield from node.outputs

    def __str__(self) -> str:
        from torchsmith.ir.text import to_text

        return to_text(self)
