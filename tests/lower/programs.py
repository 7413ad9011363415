"""Small modules as exported programs, and what the tests of the passes ask of them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchsmith.config import LowerConfig
from torchsmith.debug import programs
from torchsmith.lower.editing import Lowering, copied

HOW = Lowering(LowerConfig())
Pass = Callable[[ExportedProgram, Lowering], ExportedProgram]


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def exported(module: nn.Module | Callable[..., Any], *inputs: Tensor, dynamic: Any = None) -> ExportedProgram:
    if not isinstance(module, nn.Module):
        module, dynamic = Calls(module), dynamic and (dynamic,)
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic)


def applied(apply: Pass, program: ExportedProgram, how: Lowering = HOW, limit: float = 1e-6) -> ExportedProgram:
    """The program after a pass, which kept the rules and, in float64, the results. The program itself stays as it was."""
    text = programs.to_text(program)
    after = apply(copied(program), how)
    programs.verify(after, apply.__name__)
    programs.compare(programs.results(program), programs.results(after), apply.__name__, limit)
    assert programs.to_text(program) == text, "the pass changed the program that it was given a copy of"
    after.graph_module.recompile()
    return after


def ops(program: ExportedProgram) -> list[str]:
    """The names of the ops, in order, without namespace and overload."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    return [node.target._overloadpacket.__name__ if isinstance(node.target, OpOverload) else node.target.__name__ for node in nodes]


def agrees(program: ExportedProgram, module: nn.Module | Callable[..., Any], *inputs: Tensor, limit: float = 1e-6) -> None:
    """Assert that the program gives what the module gives, and writes to its inputs and buffers what the module writes."""
    module = copy.deepcopy(module) if isinstance(module, nn.Module) else Calls(module)
    ours, theirs = (tuple(t.clone() for t in inputs) for _ in range(2))
    runner = program.module()
    with torch.no_grad():
        given, wanted = runner(*ours), module(*theirs)
    left, expected = dict(runner.named_buffers()), dict(module.named_buffers())
    pairs = [*zip(pytree.tree_leaves((given, ours)), pytree.tree_leaves((wanted, theirs)), strict=True)]
    pairs += [(left[name], buffer) for name, buffer in expected.items() if name in left]
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype, f"{a.dtype} {tuple(a.shape)}, wanted {b.dtype} {tuple(b.shape)}"
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, equal_nan=True)
