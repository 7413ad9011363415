"""Rewriting: rules are applied until none fits, and leave alone what they do not touch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from torchsmith.ir.builder import Builder, constant
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.rewrite import Seen, rewrite
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify
from torchsmith.ops.binary import Binary
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.unary import Unary

F32 = TensorType((2, 3), torch.float32)
X = torch.tensor([[-1.0, 0.5, 2.0], [3.0, -4.0, 0.0]])


def is_unary(node: Node | None, function: str) -> bool:
    return node is not None and node.op == Unary(function)


def chain(*functions: str) -> Graph:
    with Builder() as builder:
        x = value = builder.input(F32)
        with builder.at("the user's line"):
            for function in functions:
                value = Unary(function)(value)
    assert x.name == "x"
    return builder.finish([value])


def functions(graph: Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]


def neg_neg(node: Node, seen: Seen) -> Sequence[Value] | None:
    before = seen.producer(node.inputs[0])
    return [before.inputs[0]] if before and is_unary(node, "neg") and is_unary(before, "neg") else None


def abs_is_twice_relu(node: Node, seen: Seen) -> Sequence[Value] | None:
    """relu(x) + relu(-x)"""
    if not is_unary(node, "abs"):
        return None
    (x,) = node.inputs
    return [Binary("add")(Unary("relu")(x), Unary("relu")(Unary("neg")(x)))]


def test_a_rule_takes_nodes_out() -> None:
    graph = chain("neg", "neg", "neg", "neg", "relu", "neg")
    found = rewrite(graph, [neg_neg])
    verify(found, "neg_neg")
    assert functions(found) == ["Unary[relu]", "Unary[neg]"]
    assert torch.equal(interpret(found, [X])[0], interpret(graph, [X])[0])


def test_a_rule_puts_nodes_in_where_they_come_from() -> None:
    found = rewrite(chain("neg", "abs"), [abs_is_twice_relu, neg_neg])
    verify(found, "rules")
    assert functions(found) == ["Unary[neg]", "Unary[relu]", "Unary[relu]", "Binary[add]"]  # relu(-x) + relu(x)
    assert {node.origin for node in found.nodes} == {"the user's line"}
    assert torch.equal(interpret(found, [X])[0], X.abs())


def test_what_no_rule_touches_stays_the_same_object() -> None:
    graph = chain("relu", "neg", "neg", "sigmoid")
    found = rewrite(graph, [neg_neg])
    assert found.nodes[0] is graph.nodes[0] and found.inputs == graph.inputs
    assert found.outputs == graph.outputs and found.nodes[-1].inputs == graph.nodes[0].outputs
    untouched = rewrite(chain("relu"), [neg_neg])
    assert functions(untouched) == ["Unary[relu]"]


def test_outputs_that_are_inputs_and_repeat() -> None:
    with Builder() as builder:
        x = builder.input(F32)
        y = Unary("neg")(Unary("neg")(x))
    found = rewrite(builder.finish([y, x, y]), [neg_neg])
    assert found.outputs == (x, x, x) and not found.nodes


def test_constants_can_be_asked_for_and_made() -> None:
    def fold_neg(node: Node, seen: Seen) -> Sequence[Value] | None:
        known = seen.constant(node.inputs[0])
        return None if known is None or not is_unary(node, "neg") else [constant(-known, "folded")]

    with Builder({"n": (1, 8)}) as builder:
        x = builder.input(F32)
        c = constant(torch.ones(3))
        y = Binary("add")(x, Unary("neg")(c))
    found = rewrite(builder.finish([y]), [fold_neg])
    verify(found, "fold_neg")
    assert functions(found) == ["Binary[add]"] and found.ranges == {"n": (1, 8)}
    assert [value.name for value in found.constants] == ["folded"]
    assert torch.equal(interpret(found, [X])[0], X - 1)


def test_uses_guard_against_doing_work_twice() -> None:
    def fuse(node: Node, seen: Seen) -> Sequence[Value] | None:
        before = seen.producer(node.inputs[0])
        alone = before and is_unary(before, "neg") and seen.uses(node.inputs[0]) == 1
        return [Unary("abs")(before.inputs[0])] if before and alone and is_unary(node, "abs") else None

    with Builder() as builder:
        x = builder.input(F32)
        once, shared = Unary("neg")(x), Unary("neg")(x)
        y = Binary("add")(Unary("abs")(once), Binary("add")(Unary("abs")(shared), shared))
    found = rewrite(builder.finish([y]), [fuse])
    assert functions(found) == ["Unary[neg]", "Unary[abs]", "Unary[abs]", "Binary[add]", "Binary[add]"]


def test_new_names_do_not_clash() -> None:
    found = rewrite(chain("abs", "relu", "neg"), [abs_is_twice_relu])
    verify(found, "abs_is_twice_relu")
    assert len({value.name for value in found.values()}) == len(list(found.values()))


def test_a_rule_may_not_change_a_type() -> None:
    def flatten(node: Node, seen: Seen) -> Sequence[Value] | None:
        return [Reshape((6,))(node.inputs[0])] if is_unary(node, "relu") else None

    with pytest.raises(AssertionError, match=r"f32\[6\] in the place of .*f32\[2, 3\]"):
        rewrite(chain("relu"), [flatten])


def test_rules_that_never_settle_are_named() -> None:
    def swap(node: Node, seen: Seen) -> Sequence[Value] | None:
        other = {"relu": "abs", "abs": "relu"}.get(getattr(node.op, "function", ""))
        return [Unary(other)(*node.inputs)] if other else None

    with pytest.raises(AssertionError, match=r"rules \['swap'\] do not settle"):
        rewrite(chain("relu"), [swap])
