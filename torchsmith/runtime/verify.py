"""Does a plan hang together? Asked of every plan that comes from a file."""

from __future__ import annotations

import keyword
from typing import Any

from torchsmith import sizes as shapes
from torchsmith.runtime.binding import signature_of
from torchsmith.runtime.plan import Block, Call, EngineCall, Plan, Ref, SizeInput, TensorInput


def verify(plan: Plan) -> None:
    """Raises ValueError, in a sentence, where values are used before they are made, or parts do not fit each other."""
    if [child.type for child in plan.nested_inputs.children] != [tuple, dict]:
        raise ValueError("the inputs are not nested as (args, kwargs)")
    for nested in (plan.nested_inputs, plan.nested_output):
        nested.check()
    if not all(isinstance(name, str) for name in plan.nested_inputs.children[1].context):
        raise ValueError(f"arguments are named {plan.nested_inputs.children[1].context!r}")
    if plan.nested_inputs.leaves != len(plan.inputs) or plan.nested_output.leaves != len(plan.outputs):
        raise ValueError("the inputs or outputs are not as many as their nesting has")
    signature_of(plan.parameters)
    known = {*range(len(plan.inputs)), *plan.tensors.values()}
    if plan.body.inputs != tuple(range(len(plan.inputs))) or len(known) != len(plan.inputs) + len(plan.tensors):
        raise ValueError("two inputs or tensors have the same number")
    known = _verify_block(plan.body, known)
    _need([plan.outputs, [write.value for write in plan.writes]], known)
    for write in plan.writes:
        if write.into not in (plan.tensors if isinstance(write.into, str) else range(len(plan.inputs))):
            raise ValueError(f"it writes to {write.into!r}, which it does not have")
    sizes = [
        size
        for i in plan.inputs
        for size in (i.shape if isinstance(i, TensorInput) else (i.size,) if isinstance(i, SizeInput) else ())
    ]
    for symbol in {s for size in sizes if isinstance(size, str) for s in shapes.parse(size).symbols}:
        if symbol not in plan.symbols:
            raise ValueError(f"the symbol {symbol!r} has no range")


def _verify_block(block: Block, known: set[int]) -> set[int]:
    """The values that are known at the block's end."""
    for step in block.steps:
        if isinstance(step, EngineCall):
            if len(step.inputs) != len(step.spec.inputs):
                raise ValueError(f"an engine takes {len(step.spec.inputs)} inputs, and gets {len(step.inputs)}")
            _need(step.inputs, known)
        else:
            _verify_call(step, known)
        if step.out in known:
            raise ValueError(f"the value {step.out} is made twice")
        known = known | {step.out}
    return known


def _verify_call(call: Call, known: set[int]) -> None:
    if bad := [name for name in call.kwargs if not name.isidentifier() or keyword.iskeyword(name)]:
        raise ValueError(f"{bad[0]!r} is no name of an argument")
    _need([*call.args, *call.kwargs.values()], known)
    for inner in (arg for arg in call.args if isinstance(arg, Block)):
        _need(inner.result, _verify_block(inner, set(inner.inputs)))


def _need(value: Any, known: set[int]) -> None:
    if isinstance(value, Ref) and value.index not in known:
        raise ValueError(f"the value {value.index} is used before it is made")
    if isinstance(value, (list, tuple)):
        for item in value:
            _need(item, known)
