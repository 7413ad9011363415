"""One op, from a user's call through export, conversion, interpreter and engines, against float64 PyTorch.

OpCase(lambda x: torch.softmax(x, 1), rand(2, 5)).accepted()
OpCase(lambda x: torch.softmax(x, 1, dtype=torch.float64), rand(2, 5)).refused(why="float64", on="openvino")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from torchsmith import backends
from torchsmith.config import BuildConfig, PartitionConfig
from torchsmith.convert import convert
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.text import from_bytes, to_bytes
from torchsmith.ir.verify import verify
from torchsmith.partition.segments import partition
from torchsmith.target import this_cpu
from torchsmith.testing.compare import check_close, doubled

FLOATS = (torch.float32, torch.bfloat16)
ENGINES = ("openvino",)


def rand(*shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    """Uniform float32 numbers, the same in every run."""
    generator = torch.Generator().manual_seed(sum(shape) + 7)
    return torch.rand(shape, generator=generator) * (high - low) + low


def randint(*shape: int, low: int = 0, high: int = 10, dtype: torch.dtype = torch.int64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 11)
    return torch.randint(low, high, shape, generator=generator, dtype=dtype)


class _Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@dataclass(frozen=True)
class OpCase:
    """A function of tensors that calls an op, with example inputs.

    dtypes: the floating inputs are tried in each. dynamic: (input, dimension) pairs to export as symbolic; the engine is
    then also run at other sizes there (the example's plus one). tie: the dynamic dimensions are one size. least: their
    smallest size. engines: the backends that must take it.
    """

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    dtypes: Sequence[torch.dtype] = FLOATS
    dynamic: Sequence[tuple[int, int]] = ()
    engines: Sequence[str] = ENGINES
    tie: bool = True
    least: int = 1

    def __init__(self, function: Callable[..., Any], *inputs: Tensor, **options: Any) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "inputs", inputs)
        for name in ("dtypes", "dynamic", "engines", "tie", "least"):
            object.__setattr__(self, name, options.pop(name, getattr(type(self), name, True)))
        assert not options, f"OpCase has no {options}"

    def accepted(self) -> None:
        """Assert that it converts whole, and that the interpreter and every engine are right, in each dtype."""
        for dtype in self.dtypes if any(t.is_floating_point() for t in self.inputs) else (torch.float32,):
            inputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in self.inputs)
            self._accepted(inputs, ())
            if self.dynamic and dtype == self.dtypes[0]:
                self._accepted(inputs, self.dynamic)

    def refused(self, why: str, on: str = "reference") -> None:
        """Assert that `on` refuses the op with a sentence that matches the pattern `why`."""
        program = self._export(self.inputs, self.dynamic)
        refusals = partition(program, _refuses(program, on), PartitionConfig(min_block_size=1)).refusals
        assert refusals, f"{on} took it, and should refuse it because of {why!r}"
        reasons = [r.reason for r in refusals]
        assert any(re.search(why, reason) for reason in reasons), f"refused, but because of {reasons}, not {why!r}"

    def graph(self) -> Graph:
        """The IR of the example call."""
        return _convert(self._export(self.inputs, ()))

    def _accepted(self, inputs: tuple[Tensor, ...], dynamic: Sequence[tuple[int, int]]) -> None:
        program = self._export(inputs, dynamic)
        graph = _convert(program)
        verify(graph, "convert")
        graph = from_bytes(to_bytes(graph))
        runners = {name: self._engine(program, graph, name) for name in self.engines}
        for trial in (inputs, *([self._resized(inputs, dynamic)] if dynamic else [])):
            reference = self.function(*doubled(trial))
            check_close(interpret(graph, trial), reference, what="interpreter, output")
            for name, run in runners.items():
                check_close(run(trial), reference, what=f"{name}, output")

    def _engine(self, program: ExportedProgram, graph: Graph, name: str) -> Callable[..., Any]:
        refusals = partition(program, _refuses(program, name), PartitionConfig(min_block_size=1)).refusals
        assert not refusals, f"{name} refuses: {refusals}"
        backend = backends.get(name)
        return backend.load(backend.build(graph, this_cpu(), BuildConfig(num_threads=1)), this_cpu())

    def _export(self, inputs: tuple[Tensor, ...], dynamic: Sequence[tuple[int, int]]) -> ExportedProgram:
        dims: list[dict[int, Any]] = [{} for _ in inputs]
        for number, (which, axis) in enumerate(dynamic):
            dims[which][axis] = Dim("n" if self.tie else f"n{number}", min=self.least, max=64)
        shapes = (tuple(dims),) if dynamic else None
        with torch.no_grad():
            program = export(_Calls(self.function), inputs, dynamic_shapes=shapes)
        for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
            program.graph.erase_node(node)  # of casts; the lower stage takes it out
        return program

    def _resized(self, inputs: tuple[Tensor, ...], dynamic: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        grown = list(inputs)
        for which, axis in dynamic:
            t = grown[which]
            grown[which] = torch.cat([t, t.narrow(axis, 0, 1)], axis)
        return tuple(grown)


def _refuses(program: ExportedProgram, name: str) -> Callable[[Any], str | None]:
    backend, target = backends.get(name), this_cpu()
    return lambda node: backend.refuses(node, target)


def _convert(program: ExportedProgram) -> Graph:
    """The whole program as one graph. Raises Unsupported."""
    users = set(program.graph_signature.user_inputs)
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and isinstance(n.meta["val"], (Tensor, tuple, list))]
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    outputs = [n for n in output.args[0] if isinstance(n, fx.Node)]
    if any(n.target.__name__.rstrip("0123456789").endswith("_.default") for n in nodes if hasattr(n.target, "__name__")):
        raise Unsupported("the function changes a tensor in place; write it without")
    return convert(program, inputs, nodes, outputs)
