"""A plan as one Python function. All names in its source are made here; what a plan says only ever becomes a value."""

from __future__ import annotations

import keyword
import linecache
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchsmith.runtime import checks
from torchsmith.runtime.engines import LoadedEngine
from torchsmith.runtime.plan import Block, Call, EngineCall, Plan, Ref, TensorInput
from torchsmith.runtime.structure import Structure


def function_of(
    plan: Plan, tensors: Mapping[str, Tensor], engines: Sequence[LoadedEngine], name: str = "run"
) -> tuple[Callable[..., Any], str]:
    """The function from a call's leaves to its output, and its source.

    tensors: what `plan.tensors` names. engines: one for each of `plan.engine_calls`, in their order. The function checks its
    inputs (InvalidInput), records no gradients, and lets go of every value after its last use.
    """
    writer = _Writer(plan, tensors, engines)
    source = writer.source()
    filename = f"<torchsmith {name} {id(writer):x}>"
    exec(compile(source, filename, "exec"), writer.names)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)  # for tracebacks
    function: Callable[..., Any] = writer.names["run"]
    return function, source


class _Writer:
    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor], engines: Sequence[LoadedEngine]) -> None:
        self.plan, self.tensors = plan, tensors
        self.engines = {id(call): f"e{number}" for number, call in enumerate(plan.engine_calls)}
        self.names: dict[str, Any] = {"Tensor": Tensor, "strided": torch.strided, "misfit": partial(checks.misfit, plan)}
        # bound: where an object is called, its class is asked each time
        self.names.update({f"e{number}": engine.runner.__call__ for number, engine in enumerate(engines)})
        self.bound: dict[int, str] = {}
        for number, (name, value) in enumerate(plan.tensors.items()):
            self.bound[value] = f"t{number}"
            self.names[f"t{number}"] = tensors[name]
        self.constants: dict[int, str] = {}
        self.blocks: dict[int, str] = {}
        self.functions: list[str] = []  # inner blocks, each before those that call it

    def source(self) -> str:
        plan = self.plan
        leaves = [f"v{i}" for i in range(len(plan.inputs))]
        condition, helpers = checks.condition(plan, leaves, self.names)
        lines = [f"if not ({condition}):", f"    misfit([{', '.join(leaves)}])"]
        lines += [
            f"if v{i}.requires_grad: v{i} = v{i}.detach()"
            for i, input_ in enumerate(plan.inputs)
            if isinstance(input_, TensorInput) and input_.dtype.is_floating_point
        ]
        kept = {f"v{w.value.index}" for w in plan.writes} | {f"v{w.into}" for w in plan.writes if isinstance(w.into, int)}
        output = self._output(plan.nested_output, iter(plan.outputs))
        lines += self._steps(plan.body, kept | {f"v{r.index}" for r in plan.outputs if isinstance(r, Ref)})
        for write in plan.writes:
            into = f"v{write.into}" if isinstance(write.into, int) else self.bound[plan.tensors[write.into]]
            lines.append(f"{into}.copy_({self._ref(write.value)})")
        lines.append(f"return {output}")
        return helpers + "".join(self.functions) + _function("run", leaves, lines)

    def _steps(self, block: Block, kept: set[str]) -> list[str]:
        """One line a step, and behind it the values that end there. kept: names that the caller still needs."""
        calls = [self._call(step) for step in block.steps]
        last: dict[str, int] = {}
        for number, step in enumerate(block.steps):
            last[f"v{step.out}"] = number  # a value that nothing reads ends where it is made
            for name in self._reads(step):
                last[name] = number
        ends: dict[int, list[str]] = {}
        for name, number in last.items():
            if name not in kept:
                ends.setdefault(number, []).append(name)
        lines = []
        for number, (step, call) in enumerate(zip(block.steps, calls, strict=True)):
            lines.append(f"v{step.out} = {call}" + (f"; del {', '.join(ends[number])}" if number in ends else ""))
        return lines

    def _call(self, step: Call | EngineCall) -> str:
        if isinstance(step, EngineCall):
            inputs = "".join(self._ref(ref) + ", " for ref in step.inputs)
            return f"{self.engines[id(step)]}(({inputs}))"
        if step.target is operator.getitem and len(step.args) == 2 and isinstance(step.args[1], int):
            return f"{self._value(step.args[0])}[{step.args[1]}]"
        args = [self._value(arg) for arg in step.args]
        for name, arg in step.kwargs.items():
            assert name.isidentifier() and not keyword.iskeyword(name), name
            args.append(f"{name}={self._value(arg)}")
        return f"{self._constant(step.target)}({', '.join(args)})"

    def _reads(self, step: Call | EngineCall) -> list[str]:
        found: list[str] = []

        def walk(value: Any) -> None:
            if isinstance(value, Ref) and value.index not in self.bound:
                found.append(f"v{value.index}")
            elif isinstance(value, (list, tuple)):
                for item in value:
                    walk(item)

        walk(step.inputs if isinstance(step, EngineCall) else [*step.args, *step.kwargs.values()])
        return found

    def _ref(self, ref: Ref) -> str:
        return self.bound.get(ref.index) or f"v{ref.index}"

    def _value(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self._ref(value)
        if isinstance(value, Block):
            return self._inner(value)
        if isinstance(value, list):
            return f"[{', '.join(map(self._value, value))}]"
        if isinstance(value, tuple):
            return f"({''.join(self._value(item) + ', ' for item in value)})"
        if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        """A name for a value that has no source: an op, a dtype, a text."""
        if id(value) not in self.constants:
            self.constants[id(value)] = name = f"c{len(self.constants)}"
            self.names[name] = value  # keeps it alive, so that its id stays its own
        return self.constants[id(value)]

    def _inner(self, block: Block) -> str:
        """A function of its own; lifted tensors come as its arguments."""
        if id(block) not in self.blocks:
            self.blocks[id(block)] = name = f"b{len(self.blocks)}"
            arguments = [f"a{number}" for number in block.inputs]
            kept = {f"v{index}" for index in _refs(block.result)}
            lines = [f"v{number} = a{number}" for number in block.inputs]
            lines += [*self._steps(block, kept), f"return {self._value(block.result)}"]
            self.functions.append(_function(name, arguments, lines))
        return self.blocks[id(block)]

    def _output(self, nested: Structure, leaves: Any) -> str:
        """Source that nests the leaves: plain containers are written out, others built by their own class."""
        if nested.type is None:
            return self._value(next(leaves))
        children = [self._output(child, leaves) for child in nested.children]
        if nested.type is tuple:
            return f"({''.join(child + ', ' for child in children)})"
        if nested.type is list:
            return f"[{', '.join(children)}]"
        if nested.type is dict:
            return "{" + ", ".join(f"{self._constant(key)}: {c}" for key, c in zip(nested.context, children, strict=True)) + "}"
        return f"{self._constant(nested.build)}([{', '.join(children)}])"


def _refs(value: Any) -> list[int]:
    if isinstance(value, Ref):
        return [value.index]
    return [index for item in value for index in _refs(item)] if isinstance(value, (list, tuple)) else []


def _function(name: str, arguments: Sequence[str], lines: Sequence[str]) -> str:
    return f"def {name}({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines)
