"""Which of a plan's tensors does it write to? Those must belong to the module alone."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload

from torchsmith.runtime.plan import Block, Call, EngineCall, Plan, Ref


def written(plan: Plan) -> frozenset[str]:
    """Names of the tensors that the plan writes to, also through views of them."""
    found = {write.into for write in plan.writes if isinstance(write.into, str)}
    _follow(plan.body, {number: {name} for name, number in plan.tensors.items()}, found)
    return frozenset(found)


def _follow(block: Block, owners: dict[int, set[str]], found: set[str]) -> None:
    """Pass on whose memory each value may share, as the ops' schemas tell. owners: names by value number."""
    for step in block.steps:
        if isinstance(step, EngineCall):
            continue  # its outputs are new
        if isinstance(step.target, OpOverload):
            shared = _through_op(step, owners, found)
        else:
            shared = set().union(*(owners.get(i, set()) for i in _refs([step.args, step.kwargs])), set())
            for inner in (arg for arg in step.args if isinstance(arg, Block)):
                _follow(inner, {number: shared for number in inner.inputs}, found)
        if shared:
            owners[step.out] = shared


def _through_op(step: Call, owners: dict[int, set[str]], found: set[str]) -> set[str]:
    shared: set[str] = set()
    arguments = step.target._schema.arguments  # type: ignore[attr-defined]  # an OpOverload's
    given = {arg.name: step.args[i] if i < len(step.args) else step.kwargs.get(arg.name) for i, arg in enumerate(arguments)}
    for argument in arguments:
        if argument.alias_info is None:
            continue
        names = set().union(*(owners.get(i, set()) for i in _refs(given[argument.name])), set())
        shared |= names
        if argument.alias_info.is_write:
            found |= names
    return shared


def _refs(value: Any) -> list[int]:
    if isinstance(value, Ref):
        return [value.index]
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [index for item in items for index in _refs(item)]
