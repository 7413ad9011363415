"""What a compiled module runs: steps over numbered values, and what it takes and gives. Frozen, and free of torch.export.

A plan is read off an `ExportedProgram` once (`extract.py`), travels as plain data inside a package, and becomes one Python
function (`codegen.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch._ops import OpOverload

from torchsmith.runtime.spec import EngineSpec
from torchsmith.runtime.structure import Structure
from torchsmith.sizes import Dim


@dataclass(frozen=True)
class Ref:
    """The value of this number."""

    index: int


@dataclass(frozen=True)
class Call:
    """`out = target(*args, **kwargs)`. Arguments are Refs, Blocks, constants, and lists and tuples of them."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int


@dataclass(frozen=True)
class EngineCall:
    """`out = engine(inputs)`, a list. constant: the name of the tensor with the engine's bytes."""

    spec: EngineSpec
    constant: str
    inputs: tuple[Ref, ...]
    out: int
    device: torch.device


@dataclass(frozen=True)
class Block:
    """A function: values in, steps, and what it returns, built from Refs and constants."""

    inputs: tuple[int, ...]
    steps: tuple[Call | EngineCall, ...]
    result: Any


@dataclass(frozen=True)
class TensorInput:
    """A leaf of the call that is a tensor. name: as messages call it. shape: sizes, or expressions over the plan's symbols."""

    name: str
    shape: tuple[Dim, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class SizeInput:
    """A leaf that is an int and may change from call to call."""

    name: str
    size: Dim


@dataclass(frozen=True)
class ConstantInput:
    """A leaf whose value was compiled in."""

    name: str
    value: Any


Input: TypeAlias = "TensorInput | SizeInput | ConstantInput"


@dataclass(frozen=True)
class Write:
    """After the steps, `value` is copied into a tensor of the module (by name) or an input (by position among the leaves)."""

    value: Ref
    into: str | int


@dataclass(frozen=True)
class Parameter:
    """A parameter of the original call. kind: as `inspect` spells it. default: a constant, or REQUIRED, or OPAQUE."""

    name: str
    kind: str
    default: Any


class Missing:
    """The default of a parameter that has none, or has one that no package can carry."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: object) -> Missing:
        return self


REQUIRED, OPAQUE = Missing("REQUIRED"), Missing("OPAQUE")


@dataclass(frozen=True)
class Plan:
    """inputs: the call's leaves, in order; value i of the body is leaf i. tensors: the value number of every tensor that is bound
    to the body, by name. outputs: the leaves that it returns, Refs and constants. nested: how leaves make up (args, kwargs), and
    how they make up the output. symbols: the sizes that may change, with the least and most (None: no limit) of each.
    relations: pairs of sizes that must be equal. parameters: the original's signature."""

    inputs: tuple[Input, ...]
    tensors: Mapping[str, int]
    body: Block
    writes: tuple[Write, ...]
    outputs: tuple[Any, ...]
    nested_inputs: Structure
    nested_output: Structure
    symbols: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    relations: tuple[tuple[str, str], ...] = ()
    parameters: tuple[Parameter, ...] = ()

    @property
    def engine_calls(self) -> list[EngineCall]:
        return [step for block in self.blocks() for step in block.steps if isinstance(step, EngineCall)]

    @property
    def torch_calls(self) -> list[Call]:
        """The ATen and custom ops that PyTorch runs, without those that only read a size."""
        calls = [step for block in self.blocks() for step in block.steps if isinstance(step, Call)]
        return [
            call for call in calls if isinstance(call.target, OpOverload) and not call.target._schema.name.startswith("aten::sym_")
        ]

    def blocks(self) -> list[Block]:
        """The body, and the blocks that its steps have as arguments."""
        found, queue = [], [self.body]
        while queue:
            block = queue.pop()
            found.append(block)
            queue += [arg for step in block.steps if isinstance(step, Call) for arg in step.args if isinstance(arg, Block)]
        return found
