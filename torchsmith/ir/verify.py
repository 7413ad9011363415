"""The rules that every graph keeps, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torchsmith.errors import Unsupported, VerificationError
from torchsmith.ir.dim import foreign, symbols_in
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.types import type_of


def _defined_before_use(graph: Graph) -> Iterator[str]:
    defined: set[Value] = {*graph.inputs, *graph.constants}
    for node in graph.nodes:
        for value in node.inputs:
            if value not in defined:
                yield f"{node} uses %{value.name} before it is defined"
        defined.update(node.outputs)
    for value in graph.outputs:
        if value not in defined:
            yield f"output %{value.name} is defined nowhere"


def _names_are_unique(graph: Graph) -> Iterator[str]:
    seen: set[str] = set()
    for value in graph.values():
        if value.name in seen:
            yield f"two values are called %{value.name}"
        seen.add(value.name)


def _types_hold(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        try:
            given = node.op.infer(*(v.type for v in node.inputs))
        except Unsupported as refusal:
            yield f"{node} has inputs {node.inputs}, which it refuses: {refusal}"
            continue
        types = given if isinstance(given, tuple) else (given,)
        if len(types) != len(node.outputs) or not all(t.matches(v.type) for t, v in zip(types, node.outputs, strict=True)):
            yield f"{node} has outputs {node.outputs}, and infer gives {', '.join(map(str, types))}"
    for value, tensor in graph.constants.items():
        if not type_of(tensor).matches(value.type):
            yield f"constant {value} holds {type_of(tensor)}"


def _symbols_come_from_inputs(graph: Graph) -> Iterator[str]:
    known = {str(size) for v in graph.inputs for size in v.type.shape if not isinstance(size, int) and size.is_Symbol}
    used = set().union(*(symbols_in(v.type.shape) for v in graph.values()), *(n.op.symbols() for n in graph.nodes))
    for name in sorted(used - known):
        yield f"symbol {name} is no plain size of any input"
    for name in sorted(known - set(graph.ranges)):
        yield f"symbol {name} has no range"


def _sizes_are_known(graph: Graph) -> Iterator[str]:
    for value in graph.values():
        for size in value.type.shape:
            if name := foreign(size):
                yield f"{value} has a size with {name} in it, which engines do not know"


RULES: tuple[Callable[[Graph], Iterator[str]], ...] = (
    _names_are_unique,
    _defined_before_use,
    _types_hold,
    _symbols_come_from_inputs,
    _sizes_are_known,
)


def verify(graph: Graph, after: str) -> None:
    """Raise VerificationError with every broken rule. after: the stage or pass that made the graph."""
    broken = [sentence for rule in RULES for sentence in rule(graph)]
    if broken:
        raise VerificationError(f"after {after}:\n  " + "\n  ".join(broken))
