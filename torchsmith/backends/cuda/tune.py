"""Which tactic each node takes: best guesses, or the fastest by timing on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import View, is_view, place_node
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.target import Target


@dataclass(frozen=True)
class Chosen:
    """A node of the final graph and how it runs. tactic: None for a view, and for an op that runs as its reference."""

    node: Node
    tactic: Tactic | None
    microseconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen for the sizes `at`."""

    at: Mapping[str, int]
    chosen: Sequence[Chosen]


Choose = Callable[[Graph, "dict[Value, View]", Packed, Target, BuildConfig], "list[Choice]"]


def guess(graph: Graph, views: dict[Value, View], packed: Packed, target: Target, config: BuildConfig) -> list[Choice]:
    """Best guesses for every size. Adds the views of what is inside nodes that are taken apart."""
    return [Choice({}, settle(graph.nodes, views, packed))]


choose: Choose = guess  # until tactics are timed


def settle(nodes: Sequence[Node], views: dict[Value, View], packed: Packed) -> list[Chosen]:
    """Each node with its best guess; fused nodes that no template takes are taken apart."""
    chosen: list[Chosen] = []
    for node in nodes:
        if is_view(node, views):
            chosen.append(Chosen(node, None))
            continue
        found, _ = tactics.tactics_of(Emission(node, views, packed), limit=1)
        if found:
            chosen.append(Chosen(node, found[0]))
        elif isinstance(node.op, Fused):
            chosen += settle(parts(node, node.op, views), views, packed)
        else:
            chosen.append(Chosen(node, None))
    return chosen


def parts(node: Node, op: Fused, views: dict[Value, View]) -> Sequence[Node]:
    """The nodes of a fused one's body. Adds the views of what is inside."""
    outer = {v: views[v] for v in node.outputs}
    for inner in op.body.nodes:
        place_node(inner, views)
        views.update({v: outer[v] for v in inner.outputs if v in outer})
    return op.body.nodes
