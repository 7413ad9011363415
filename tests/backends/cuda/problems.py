"""Small graphs, and a timer and a compiler that pretend, for the tests of tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchsmith.backends.cuda.accuracy import Accuracy
from torchsmith.backends.cuda.candidate import Candidate
from torchsmith.backends.cuda.cubins import Cubin
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.layout import View, place
from torchsmith.backends.cuda.steps import Kernel
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.unary import Unary


def layers(count: int = 2, rows: int | str = 64, width: int = 32, dtype: torch.dtype = torch.float16) -> Graph:
    """So many linear layers of one shape, an activation after each. rows: a number, or a symbol from 2 to 32."""
    size = symbol(rows) if isinstance(rows, str) else rows
    ranges: dict[str, tuple[int, int | None]] = {rows: (2, 32)} if isinstance(rows, str) else {}
    with Builder(ranges) as b:
        x = b.input(TensorType((size, width), dtype))
        for _ in range(count):
            weight = b.constant(torch.randn(width, width).to(dtype), "weight")
            x = Unary("relu")(Linear()(x, weight))
        return b.finish([x])


def placed(graph: Graph) -> tuple[dict[Value, View], Packed]:
    return place(graph), Packed(graph.constants)


@dataclass
class FakeTimer:
    """cost: microseconds of a candidate, or why it cannot run. accuracy: what the gate finds."""

    cost: Callable[[Candidate], float | str] = lambda candidate: 1.0
    accuracy: Callable[[Candidate], Accuracy | str] = lambda candidate: Accuracy(1e-4, None)
    timed: list[Candidate] = field(default_factory=list)

    def check(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> Accuracy | str:
        assert all(isinstance(cubins[s.kernel.key()], Cubin) for s in candidate.launches)
        return self.accuracy(candidate)

    def time(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> float | str:
        self.timed.append(candidate)
        return self.cost(candidate)


@dataclass
class FakeCompiler:
    """In the place of `compile_all`. answer: machine code, or why there is none."""

    answer: Callable[[Kernel], Any] = lambda kernel: Cubin(b"code", kernel.function, 128, 0, False)
    asked: list[Kernel] = field(default_factory=list)

    def __call__(self, kernels: Iterable[Kernel], arch: int, workers: int = 0) -> Iterator[tuple[Kernel, Any]]:
        for kernel in {k.key(): k for k in kernels}.values():
            self.asked.append(kernel)
            yield kernel, self.answer(kernel)
