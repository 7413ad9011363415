"""How graphs are made: open a `Builder`, call ops on values, finish."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType, type_of

_state = threading.local()


def current() -> Builder:
    """The builder that ops called in this thread are added to."""
    builder: Builder | None = getattr(_state, "builder", None)
    assert builder is not None, "an op was called outside a Builder"
    return builder


class Builder:
    """Collects nodes. `with Builder() as b:` makes it the one that op calls go to."""

    def __init__(self, ranges: Mapping[str, tuple[int, int | None]] | None = None) -> None:
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[Value, Tensor] = {}
        self.ranges = dict(ranges or {})
        # What the node being converted must give, and where it comes from; set by convert.
        self.expected: tuple[TensorType, ...] = ()
        self.origin = ""
        self.precision: torch.dtype | None = None
        self._names: dict[str, int] = {}
        self._outer: list[Builder | None] = []

    def __enter__(self) -> Builder:
        self._outer.append(getattr(_state, "builder", None))
        _state.builder = self
        return self

    def __exit__(self, *_: object) -> None:
        _state.builder = self._outer.pop()

    def input(self, type: TensorType, name: str = "x") -> Value:
        value = Value(self._name(name), type)
        self.inputs.append(value)
        return value

    def constant(self, tensor: Tensor, name: str = "c") -> Value:
        value = Value(self._name(name), type_of(tensor))
        self.constants[value] = tensor.detach()
        return value

    def reserve(self, names: Iterable[str]) -> None:
        """Give these names to no new value; they belong to values that are added as they are."""
        for name in names:
            self._names.setdefault(name, 1)

    def add(self, op: Op, *inputs: Value) -> Any:
        for value in inputs:
            assert isinstance(value, Value), f"{op} was given {value!r}, which is no Value"
        types = op.infer(*(value.type for value in inputs))
        many = isinstance(types, tuple)
        outputs = tuple(Value(self._name(type(op).__name__.lower()), t) for t in (types if isinstance(types, tuple) else (types,)))
        self.nodes.append(Node(op, inputs, outputs, self.origin, self.precision))
        return outputs if many else outputs[0]

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """The graph, without nodes and constants that no output needs."""
        needed, nodes = set(outputs), list[Node]()
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                nodes.append(node)
        constants = {value: tensor for value, tensor in self.constants.items() if value in needed}
        return Graph(tuple(self.inputs), tuple(reversed(nodes)), tuple(outputs), constants, self.ranges)

    @contextmanager
    def at(self, origin: str, expected: tuple[TensorType, ...] = (), precision: torch.dtype | None = None) -> Iterator[None]:
        """Nodes added inside come from `origin`, are to give `expected`, and to compute in `precision`, where one is given."""
        outer = self.origin, self.expected, self.precision
        self.origin, self.expected, self.precision = origin, expected, precision
        try:
            yield
        finally:
            self.origin, self.expected, self.precision = outer

    def _name(self, wanted: str) -> str:
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return wanted if count == 0 else self._name(f"{wanted}_{count}")


def constant(tensor: Tensor, name: str = "c") -> Value:
    """A constant in the graph under construction."""
    return current().constant(tensor, name)


def expected() -> TensorType:
    """The type that the ATen node being converted has in the exported program; views and factories take their shape from it."""
    (only,) = current().expected
    return only
