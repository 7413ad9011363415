"""Graphs made from graphs: rules look at one node after another, and say what stands in its place.

def relu_twice(node: Node, seen: Seen) -> Sequence[Value] | None:
    before = seen.producer(node.inputs[0])
    if is_relu(node) and before and is_relu(before):
        return [before.outputs[0]]
    return None

graph = rewrite(graph, [relu_twice])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Node, Value

# Rules that keep undoing each other would go on for ever.
_MAX_ROUNDS = 100


class Seen:
    """What a rule may ask of the graph so far: everything before the node that it looks at, already rewritten."""

    def __init__(self, builder: Builder, uses: Counter[Value]) -> None:
        self._builder, self._uses = builder, uses
        self._producers: dict[Value, Node] = {}
        self._known = 0

    def producer(self, value: Value) -> Node | None:
        """The node that gives a value; None for inputs and constants."""
        for node in self._builder.nodes[self._known :]:
            self._producers.update(dict.fromkeys(node.outputs, node))
        self._known = len(self._builder.nodes)
        return self._producers.get(value)

    def constant(self, value: Value) -> Tensor | None:
        return self._builder.constants.get(value)

    def uses(self, value: Value) -> int:
        """How often a value is used, by nodes and as an output; after a rewrite nearby it may be told more often."""
        return self._uses[value]


Rule = Callable[[Node, Seen], "Sequence[Value] | None"]


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Apply rules, the first that fits at each node, until none fits any more.

    A rule is shown a node whose inputs are already rewritten. It returns None, or one value for each of the node's outputs, of
    the same types: values that are there, or new ones, made by calling ops on values. Nodes, constants and names that no rule
    touched stay the same objects; what nobody needs any more is dropped.
    """
    for _ in range(_MAX_ROUNDS):
        rewritten, changed = _once(graph, rules)
        if not changed:
            return rewritten
        graph = rewritten
    raise AssertionError(f"rules {[getattr(rule, '__name__', rule) for rule in rules]} do not settle after {_MAX_ROUNDS} rounds")


def _once(graph: Graph, rules: Sequence[Rule]) -> tuple[Graph, bool]:
    builder = Builder(graph.ranges)
    builder.reserve(value.name for value in graph.values())
    builder.inputs, builder.constants = list(graph.inputs), dict(graph.constants)
    uses = Counter([value for node in graph.nodes for value in node.inputs] + list(graph.outputs))
    seen = Seen(builder, uses)
    now: dict[Value, Value] = {}  # what stands for a value that was replaced
    changed = False
    for old in graph.nodes:
        inputs = tuple(now.get(value, value) for value in old.inputs)
        node = old if inputs == old.inputs else Node(old.op, inputs, old.outputs, old.origin)
        start = len(builder.nodes)
        with builder, builder.at(node.origin):
            values = next((found for rule in rules if (found := rule(node, seen)) is not None), None)
        if values is None:
            builder.nodes.append(node)
            continue
        changed = True
        uses.update(value for new in builder.nodes[start:] for value in new.inputs)
        for output, value in zip(node.outputs, values, strict=True):
            assert value.type.matches(output.type), f"a rule put {value} in the place of {output} of {node}"
            now[output] = value
            uses[value] += uses[output]
    return builder.finish([now.get(value, value) for value in graph.outputs]), changed
