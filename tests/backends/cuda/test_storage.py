"""Where values are when an engine runs, as far as can be told without a GPU: lifetimes, edges, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.backends.cuda.memory import Lifetime
from torchsmith.backends.cuda.plan import CallStep, LaunchStep, Plan, PlannedKernel, PlannedValue, Variant
from torchsmith.backends.cuda.storage import Memory, bound_edges, lifetimes
from torchsmith.ops.registry import load_all
from torchsmith.ops.softmax import Softmax
from torchsmith.ops.top_k import TopK
from torchsmith.target import Target

load_all()
CPU = torch.device("cpu")


def value(
    *shape: Any, root: str = "", offset: int = 0, strides: Sequence[Any] = (), dtype: torch.dtype = torch.float32
) -> PlannedValue:
    strides = strides or [4 ** (len(shape) - 1 - i) for i in range(len(shape))]
    return PlannedValue(tuple(shape), dtype, root, tuple(strides), offset)


def launch(reads: Sequence[str], writes: Sequence[str]) -> LaunchStep:
    return LaunchStep(0, (1, 1, 1), tuple({"value": name} for name in (*reads, *writes)), tuple(writes))


def call(op: Any, reads: Sequence[str], writes: Sequence[str]) -> CallStep:
    return CallStep(op, tuple(reads), tuple(writes))


def plan_of(
    values: Mapping[str, PlannedValue],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *steps: LaunchStep | CallStep,
    constants: Sequence[str] = (),
) -> tuple[Plan, Variant]:
    """A plan of one variant. A value without a root is its own."""
    named = {name: v if v.root else replace(v, root=name) for name, v in values.items()}
    kernel = PlannedKernel("code:", "k", 128, 0, False, ())
    variant = Variant({}, steps)
    target = Target("cuda", "sm_90")
    return Plan(target, tuple(inputs), tuple(outputs), tuple(constants), named, (kernel,), (variant,), {}), variant


V = value(4, 4)
CHAIN = {"x": V, "a": V, "b": V, "c": V, "y": V, "w": V}


def test_lifetimes_run_from_the_first_touch_to_the_last() -> None:
    plan, variant = plan_of(
        CHAIN, ["x"], ["y"], launch(["x", "w"], ["a"]), launch(["a"], ["b"]), launch(["a", "b"], ["y"]), constants=["w"]
    )
    lives, called = lifetimes(plan, variant, {})
    assert called == {}
    assert {(v.name, v.first, v.last, v.bytes) for v in lives} == {("a", 0, 2, 64), ("b", 1, 2, 64), ("y", 2, 3, 64)}


def test_views_keep_their_root_alive() -> None:
    values = {**CHAIN, "half": value(2, 4, root="a", offset=8)}
    plan, variant = plan_of(values, ["x"], ["b"], launch(["x"], ["a"]), launch(["x"], ["c"]), launch(["half", "c"], ["b"]))
    assert Lifetime("a", 0, 2, 64) in lifetimes(plan, variant, {})[0]
    plan, variant = plan_of(values, ["x"], ["half"], launch(["x"], ["a"]), launch(["x"], ["c"]))
    assert Lifetime("a", 0, 2, 64) in lifetimes(plan, variant, {})[0], "an output lives to the end"


def test_what_ops_in_pytorch_give_is_theirs() -> None:
    plan, variant = plan_of(
        CHAIN, ["x"], ["y"], call(Softmax(1), ["x"], ["a"]), launch(["a"], ["b"]), call(Softmax(1), ["b"], ["y"])
    )
    lives, called = lifetimes(plan, variant, {})
    assert called == {"a": 1, "y": 3} and {v.name for v in lives} == {"a", "b", "y"}


def test_what_several_steps_write_is_in_the_arena() -> None:
    values = {**CHAIN, "left": value(4, 2, root="y", strides=[4, 1]), "right": value(4, 2, root="y", offset=2, strides=[4, 1])}
    plan, variant = plan_of(values, ["x"], ["y"], launch(["x"], ["left"]), call(Softmax(1), ["x"], ["right"]))
    assert lifetimes(plan, variant, {})[1] == {}


def test_sizes_that_may_change() -> None:
    values = {"x": value("n", 4), "y": value("n", 4)}
    plan, variant = plan_of(values, ["x"], ["y"], launch(["x"], ["y"]))
    for n, size in ((1, 16), (7, 112), (0, 0)):
        ((life,), _) = lifetimes(plan, variant, {"n": n})
        assert life.bytes == size, n


@pytest.mark.parametrize(
    ("inputs", "outputs", "steps", "bound"),
    [
        (["x"], ["y"], [launch(["x"], ["a"]), launch(["a"], ["y"])], {"x", "y"}),
        (["x"], ["y"], [call(Softmax(1), ["x"], ["a"]), launch(["a"], ["y"])], {"y"}),
        (["x"], ["y"], [launch(["x"], ["a"]), call(Softmax(1), ["a"], ["y"])], {"x"}),
        (["x"], ["x", "y"], [launch(["x"], ["y"])], {"y"}),
        (["x"], ["y", "y"], [launch(["x"], ["y"])], {"x"}),
        (["x"], ["y", "part"], [launch(["x"], ["y"])], {"x"}),
        (["x", "b"], ["y"], [launch(["x"], ["y"])], {"x", "b", "y"}),
        (["x"], ["w"], [launch(["x"], ["y"])], {"x"}),
    ],
    ids=["kernels", "op first", "op last", "an input handed out", "handed out twice", "a view beside it", "unused", "a constant"],
)
def test_edges_that_only_our_kernels_touch(inputs: list[str], outputs: list[str], steps: list[Any], bound: set[str]) -> None:
    values = {**CHAIN, "part": value(2, 4, root="y")}
    plan, variant = plan_of(values, inputs, outputs, *steps, constants=["w"])
    assert bound_edges(plan, variant) == bound


def memory(plan: Plan, variant: Variant, constants: Mapping[str, Tensor] | None = None, **env: int) -> Memory:
    return Memory(plan, variant, constants or {}, env, CPU)


def test_memory_on_the_cpu() -> None:
    values = {**CHAIN, "part": value(2, 4, root="a", offset=8), "turned": value(4, 4, root="a", strides=[1, 4])}
    plan, variant = plan_of(
        values, ["x"], ["y"], launch(["x", "w"], ["a"]), launch(["part", "turned"], ["b"]), launch(["b"], ["y"]), constants=["w"]
    )
    held = memory(plan, variant, {"w": torch.ones(16)})
    a = held.tensor("a")
    a.copy_(torch.arange(16.0).view(4, 4))
    assert torch.equal(held.tensor("part"), a[2:]) and torch.equal(held.tensor("turned"), a.t())
    assert held.address("part") == held.address("a") + 8 * 4
    assert torch.equal(held.tensor("w"), torch.ones(4, 4))
    held.tensor("b").fill_(7)
    assert torch.equal(a, torch.arange(16.0).view(4, 4)), "values that live together do not share memory"
    assert held.bytes == held.arena.nbytes, "edges take no memory until they are lent or copied"
    assert held.fresh().tensor("a") is a


def test_edges_are_lent_and_taken_back() -> None:
    plan, variant = plan_of(CHAIN, ["x"], ["y"], launch(["x"], ["a"]), launch(["a"], ["b"]), launch(["b"], ["y"]))
    held, x = memory(plan, variant), torch.rand(4, 4)
    held.lend("x", x)
    y = held.new("y")
    held.lend("y", y)
    assert held.address("x") == x.data_ptr() and held.address("y") == y.data_ptr()
    assert held.overlaps(x) and held.overlaps(x[1:]) and not held.overlaps(torch.rand(4, 4))
    held.take_back()
    assert not held.overlaps(x)
    with pytest.raises(AssertionError, match="x is used before x is there"):
        held.tensor("x")
    turned = torch.rand(4, 4).t()
    assert torch.equal(held.copied("x", turned), turned) and held.tensor("x").stride() == (4, 1)
    assert held.bytes == held.arena.nbytes + 64
    held.lend("x", x)
    assert held.address("x") == x.data_ptr(), "what was seen of the copy is forgotten"


def test_memory_of_what_ops_give() -> None:
    values = {"x": V, "v": value(4, 2, strides=[1, 4]), "i": value(4, 2, strides=[2, 1], dtype=torch.int64), "y": V}
    step = call(TopK(2, 1, True, False), ["x"], ["v", "i"])
    plan, variant = plan_of(values, ["x"], ["y"], step, launch(["v", "i"], ["y"]))
    held = memory(plan, variant)
    given = torch.rand(4, 2), torch.arange(8).view(4, 2)
    held.adopt(step, given)
    assert torch.equal(held.tensor("v"), given[0]) and held.tensor("v").stride() == (1, 4), "copied into the plan's strides"
    assert torch.equal(held.tensor("i"), given[1])
    held.release(0)
    assert torch.equal(held.tensor("i"), given[1]), "a later step needs it"
    held.release(1)
    with pytest.raises(AssertionError, match="i is used before i is there"):
        held.tensor("i")


def test_memory_of_no_elements() -> None:
    values = {"x": value("n", 4), "a": value("n", 4), "y": value("n", 4)}
    plan, variant = plan_of(values, ["x"], ["y"], launch(["x"], ["a"]), launch(["a"], ["y"]))
    held = memory(plan, variant, n=0)
    held.copied("x", torch.empty(0, 4))
    held.lend("y", held.new("y"))
    assert held.tensor("x").shape == held.tensor("a").shape == held.tensor("y").shape == (0, 4)
    assert memory(plan, variant, n=3).tensor("a").shape == (3, 4)
