"""Whole engines in Triton's interpreter, for the tests in `interpreted/`.

check(module, *inputs)  emits steps as for sm_90, without a GPU, runs them on the CPU and compares with float64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from triton.runtime import interpreter

from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.steps import Launch, Step
from torchsmith.capture import capture
from torchsmith.config import BuildConfig, Config
from torchsmith.convert import convert
from torchsmith.inputs import resolve
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import bind_symbols, interpret
from torchsmith.ir.widen import wide, widened
from torchsmith.lower import lower
from torchsmith.partition.segments import partition
from torchsmith.quantize.precision import reduce_precision
from torchsmith.target import Target

SM_90 = Target("cuda", "sm_90")


def graph_of(module: nn.Module, inputs: Sequence[Any], dtype: torch.dtype = torch.float16) -> Graph:
    """The model's only segment as the backend gets it. inputs: tensors, or `torchsmith.Input`s with dynamic sizes."""
    config = Config.from_options()
    captured = capture(module.eval(), resolve(list(inputs), None), config.capture)
    lowered = lower(captured, config.lower, keep=frozenset())
    parts = partition(lowered.program, lambda node: None, config.partition)
    (segment,) = parts.segments
    return reduce_precision(convert(parts.program, segment.inputs, segment.nodes, segment.outputs), dtype)


@dataclass
class Simulated:
    """steps: what the engine does. error: of the outputs, relative to float64's norm. eager_error: of the graph's references."""

    steps: list[Step]
    outputs: list[Tensor]
    error: float
    eager_error: float

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels, in order; ops that run in PyTorch by their class in brackets."""
        return [s.kernel.function if isinstance(s, Launch) else f"[{type(s.op).__name__}]" for s in self.steps]


def stepped(graph: Graph, inputs: Sequence[Tensor]) -> tuple[list[Step], list[Tensor]]:
    """The steps of the graph's engine with best guesses, and what they give."""
    (emitted,), views, packed = build.emit(graph, SM_90, BuildConfig())
    env = bind_symbols(graph, inputs)
    given = dict(zip(graph.inputs, inputs, strict=True))
    return list(emitted.steps), simulate(emitted.steps, given, graph.outputs, packed.tensors, views, env)


def run(graph: Graph, inputs: Sequence[Tensor]) -> Simulated:
    """The graph's engine with best guesses, simulated."""
    steps, outputs = stepped(graph, inputs)
    eager = interpret(graph, inputs)
    wide = interpret(*_wide(graph, inputs))
    return Simulated(steps, outputs, relative(outputs, wide), relative(eager, wide))


def check(module: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.float16, limit: float = 1.1) -> Simulated:
    """Simulate the module's engine; its error must be at most `limit` times PyTorch's in that precision, plus rounding."""
    torch.manual_seed(0)
    found = run(graph_of(module, inputs, dtype), inputs)
    rounding = {torch.float32: 2e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}[dtype]
    assert found.error <= limit * found.eager_error + rounding, (found.error, found.eager_error, found.kernels)
    return found


def _round_as_gpus_do() -> None:
    """Triton 3.8's interpreter truncates float32 to bfloat16; PyTorch and GPUs round to nearest.

    What it makes of float32 in float8 loses the carry into the exponent and does not saturate, and it reads NaN as 480.
    """
    given = interpreter._convert_float

    def convert(x: Any, source: Any, wanted: Any, mode: Any) -> Any:
        pair = str(source), str(wanted)
        if pair == ("fp32", "bf16"):
            wide = torch.from_numpy(x.astype("float32", copy=True).reshape(-1))
            return wide.bfloat16().view(torch.int16).numpy().view("uint16").reshape(x.shape)
        if pair == ("fp32", "fp8e4nv"):
            wide = torch.from_numpy(x.astype("float32", copy=True).reshape(-1)).clamp(-448, 448)
            return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(x.shape)
        if pair in (("fp8e4nv", "fp32"), ("fp8e4nv", "fp16")):
            narrow = torch.from_numpy(x.astype("uint8", copy=True).reshape(-1)).view(torch.float8_e4m3fn)
            made = narrow.to(torch.float32 if pair[1] == "fp32" else torch.float16).numpy().reshape(x.shape)
            return made.view("uint32" if pair[1] == "fp32" else "uint16")
        return given(x, source, wanted, mode)

    interpreter._convert_float = convert


_round_as_gpus_do()


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    assert all(torch.isfinite(f.double()).all() for f in found)
    difference = sum(float((f.double() - w.double()).square().sum()) for f, w in zip(found, wanted, strict=True))
    size = sum(float(w.double().square().sum()) for w in wanted)
    return float((difference / max(size, 1e-30)) ** 0.5)


def _wide(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Graph, list[Tensor]]:
    return widened(graph), [t.to(wide(t.dtype)) for t in inputs]
