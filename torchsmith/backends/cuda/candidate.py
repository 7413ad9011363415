"""One way to run a node, and the memory that it is tried in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.memory import ALIGNMENT
from torchsmith.backends.cuda.precision import Tf32, running
from torchsmith.backends.cuda.steps import Call, Launch, Step
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.backends.cuda.two_four import Prepares
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Node, Value

if TYPE_CHECKING:
    from torchsmith.backends.cuda.timing import Bench

_POISON = 255  # a byte that makes NaN of every floating dtype


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a node, ready to be compiled.

    tensors: of constants, the packed ones included. at: numbers for the symbols. cold: whether its weights come from memory,
    as in networks whose weights do not fit the L2 cache. tf32: where PyTorch, which it is compared with, rounds to it.
    """

    node: Node
    tactic: Tactic | None
    steps: Sequence[Step]
    views: Mapping[Value, View]
    tensors: Mapping[Value, Tensor]
    at: Mapping[str, int] = field(default_factory=dict)
    cold: bool = False
    tf32: Tf32 = field(default_factory=Tf32)

    @property
    def launches(self) -> list[Launch]:
        return [s for s in self.steps if isinstance(s, Launch)]

    @property
    def prepared(self) -> Mapping[Value, Prepares]:
        """Constants that are laid out anew on the device, with the op that does it."""
        return {s.inputs[s.op.prepares]: s.op for s in self.steps if isinstance(s, Call) and isinstance(s.op, Prepares)}


class Launcher(Protocol):
    def __call__(self, step: Launch, grid: Sequence[int], arguments: Sequence[Any], stream: int) -> None: ...


class Memory:
    """Where a candidate's values are for one run. Storage that nobody filled is poisoned, and so is what is around it."""

    def __init__(
        self,
        bench: Bench,
        candidate: Candidate,
        given: Mapping[Value, Tensor],
        first: Memory | None = None,
        constants: Mapping[Value, Tensor] | None = None,
    ) -> None:
        """first: whose storage this one shares, but for `constants`, which are copies."""
        self.bench, self.candidate = bench, candidate
        touched = [v for s in candidate.steps for v in s.touched]
        self.roots = dict.fromkeys(candidate.views[v].root for v in (*touched, *self.bench.node.outputs))
        self.storage: dict[Value, Tensor] = dict(given)
        self._whole: dict[Value, Tensor] = {}
        self._adopted: dict[Value, Tensor] = {}
        self._constants = dict(constants or {})
        self._prepared = candidate.prepared
        for root in self.roots:
            if root in self.storage or root in candidate.tensors:
                continue
            self.storage[root] = first.storage[root] if first is not None else self._poisoned(root)
        self._first = first
        self._ready: list[tuple[Launch, list[int], list[Any]]] | None = None

    def _poisoned(self, root: Value) -> Tensor:
        size = self.bench.numel(root, self.candidate) * root.type.dtype.itemsize
        guard = 2 * ALIGNMENT
        whole = torch.full((-(-size // ALIGNMENT) * ALIGNMENT + 2 * guard,), _POISON, dtype=torch.uint8, device=self.bench.device)
        self._whole[root] = whole
        return whole[guard : guard + size].view(root.type.dtype)

    def trespass(self) -> str | None:
        """The sentence where something was written next to a value's storage."""
        guard = 2 * ALIGNMENT
        for root, whole in self._whole.items():
            size = self.storage[root].nbytes
            if bool((whole[:guard] != _POISON).any()) or bool((whole[guard + size :] != _POISON).any()):
                return f"it writes outside of {root.name}"
        return None

    def root(self, root: Value) -> Tensor:
        if root in self._adopted:
            return self._adopted[root]
        if root in self.storage:
            return self.storage[root]
        return self._constants[root] if root in self._constants else self.bench.constant(root, self.candidate)

    def tensor(self, value: Value) -> Tensor:
        view, at = self.candidate.views[value], self.bench.at
        flat = self.root(view.root)
        if value in self._prepared and self.bench.device.type == "cuda":
            return flat
        return flat.as_strided(
            bind(value.type.shape, at), bind(view.strides, at), flat.storage_offset() + int(bind(view.offset, at))
        )

    def run(self, launch: Launcher) -> None:
        """Enqueue the steps on the current stream, as an engine does."""
        stream = torch.cuda.current_stream(self.bench.device).cuda_stream if self.bench.device.type == "cuda" else 0
        if len(self.candidate.launches) == len(self.candidate.steps):
            if self._ready is None:
                self._ready = self._first.moved(self) if self._first else [self._arguments(s) for s in self.candidate.launches]
            for ready in self._ready:
                launch(*ready, stream)
            return
        for step in self.candidate.steps:
            if isinstance(step, Launch):
                launch(*self._arguments(step), stream)
                continue
            with torch.no_grad(), torch.device(self.bench.device), running(step.op, step.tf32):
                given = step.op.bound(self.bench.at).reference(*(self.tensor(v) for v in step.inputs))
            for value, result in zip(step.outputs, given if isinstance(given, tuple) else (given,), strict=True):
                self._put(value, result)

    def _arguments(self, step: Launch) -> tuple[Launch, list[int], list[Any]]:
        at = self.bench.at
        arguments = [self.tensor(a).data_ptr() if isinstance(a, Value) else bind(a, at) for a in step.arguments]
        return step, [int(bind(size, at)) for size in step.grid], arguments

    def moved(self, other: Memory) -> list[tuple[Launch, list[int], list[Any]]]:
        """This one's launches with the other's constants: making them anew takes longer than running them."""
        assert self._ready is not None
        distance = {root: copy.data_ptr() - self.root(root).data_ptr() for root, copy in other._constants.items()}
        views = self.candidate.views
        return [
            (
                step,
                grid,
                [
                    given + distance.get(views[a].root, 0) if isinstance(a, Value) else given
                    for a, given in zip(step.arguments, arguments, strict=True)
                ],
            )
            for step, grid, arguments in self._ready
        ]

    def _put(self, value: Value, result: Tensor) -> None:
        strides = bind(self.candidate.views[value].strides, self.bench.at)
        alike = all(n == 1 or a == b for n, a, b in zip(result.shape, result.stride(), strides, strict=True))
        if self.candidate.views[value].root is value and alike and result.data_ptr() % ALIGNMENT == 0:
            self._adopted[value] = result
        else:
            self.tensor(value).copy_(result)
