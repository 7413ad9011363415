"""Rewriting rules on a graph whose outputs stay the same values, as builders need them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.rewrite import Rule, rewrite


def apply(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """The graph rewritten; new values that stand for outputs take the outputs' places."""
    new = rewrite(graph, rules)
    given = {*new.inputs, *new.constants}
    old = {now: before for before, now in zip(graph.outputs, new.outputs, strict=True) if now is not before}
    if not old:
        return new
    assert not given.intersection(old), f"a fusion put an input or a constant in the place of an output: {old}"
    nodes = [
        Node(n.op, tuple(old.get(v, v) for v in n.inputs), tuple(old.get(v, v) for v in n.outputs), n.origin) for n in new.nodes
    ]
    return replace(new, nodes=tuple(nodes), outputs=graph.outputs)
