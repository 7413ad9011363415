"""Where the values of an engine at one set of sizes are: one arena for activations, and what callers and PyTorch's ops give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith import sizes
from torchsmith.backends.cuda.memory import ALIGNMENT, Lifetime, arrange
from torchsmith.backends.cuda.plan import CallStep, LaunchStep, Plan, Variant
from torchsmith.errors import OutOfDeviceMemory


class Memory:
    """Where values are: the arena, the graph's inputs, constants, and what ops in PyTorch gave."""

    def __init__(
        self, plan: Plan, variant: Variant, constants: Mapping[str, Tensor], env: Mapping[str, int], device: torch.device
    ) -> None:
        self.plan, self.env, self.device = plan, env, device
        self.bound = bound_edges(plan, variant)
        self.given: dict[str, Tensor] = dict(constants)
        self._copies: dict[str, Tensor] = {}  # memory for inputs that are copied
        self._lent: dict[str, Tensor] = {}
        lives, self._last = lifetimes(plan, variant, env)
        offsets, size = arrange([life for life in lives if life.name not in self.bound and life.name not in self._last])
        with memory_errors("its activations"):
            self.arena = torch.empty(size, dtype=torch.uint8, device=device)
        for name, offset in offsets.items():
            value = plan.values[name]
            self.given[name] = self.arena[offset : offset + self._numel(name) * value.dtype.itemsize].view(value.dtype)
        self._adopted: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Of the arena, and of copies of inputs; not of weights, nor of what the caller lends and is handed."""
        return self.arena.nbytes + sum(t.nbytes for t in self._copies.values())

    def own(self) -> list[Tensor]:
        return [self.arena, *self._copies.values()]

    def strides(self, name: str) -> tuple[int, ...]:
        return tuple(self._numbers(self.plan.values[name].strides))

    def new(self, name: str) -> Tensor:
        """Memory for a bound output, as the caller is handed it."""
        value = self.plan.values[name]
        return torch.empty_strided(self._numbers(value.shape), self.strides(name), dtype=value.dtype, device=self.device)

    def overlaps(self, tensor: Tensor) -> bool:
        """Whether the memory of another edge that is lent lies where this tensor's does: the graph would take one for the other."""
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.untyped_storage().nbytes()
        return any(t.data_ptr() < last and first < t.data_ptr() + t.nbytes for t in self._lent.values())

    def lend(self, name: str, tensor: Tensor) -> None:
        """Let a bound edge be in the tensor's memory."""
        self._lent[name] = tensor.as_strided((self._numel(name),), (1,), tensor.storage_offset())
        self._put(name, self._lent[name])

    def copied(self, name: str, given: Tensor) -> Tensor:
        """An input in memory of the engine's own."""
        if name not in self._copies:
            value = self.plan.values[name]
            with memory_errors("its inputs"), torch.inference_mode(False):
                self._copies[name] = torch.empty(self._numel(name), dtype=value.dtype, device=self.device)
        self._put(name, self._copies[name])
        own = self._copies[name].as_strided(given.shape, self.strides(name))
        own.copy_(given)
        return own

    def _put(self, root: str, memory: Tensor) -> None:
        if self.given.get(root) is not memory:
            self.given[root] = memory
            self._tensors = {n: t for n, t in self._tensors.items() if self.plan.values[n].root != root}

    def take_back(self) -> None:
        """Let go of what was lent."""
        for name in self._lent:
            del self.given[name]
        self._lent = {}
        self.fresh()

    def fresh(self) -> Memory:
        """For another run of the steps: nothing is adopted."""
        self._adopted, self._tensors = {}, {n: t for n, t in self._tensors.items() if self.plan.values[n].root in self.given}
        return self

    def _numel(self, name: str) -> int:
        """Elements from the first to the last of a root, gaps included."""
        value = self.plan.values[name]
        shape, strides = self._numbers(value.shape), self._numbers(value.strides)
        return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def _numbers(self, row: Sequence[sizes.Dim]) -> list[int]:
        return [sizes.evaluate(size, self.env) for size in row]

    def tensor(self, name: str) -> Tensor:
        if name in self.plan.prepared:
            return self.given[name]
        if name not in self._tensors:
            value = self.plan.values[name]
            root = self.given.get(value.root, self._adopted.get(value.root))
            assert root is not None, f"{name} is used before {value.root} is there"
            offset = root.storage_offset() + sizes.evaluate(value.offset, self.env)
            self._tensors[name] = root.as_strided(self._numbers(value.shape), self._numbers(value.strides), offset)
        return self._tensors[name]

    def address(self, name: str) -> int:
        return self.tensor(name).data_ptr()

    def adopt(self, step: CallStep, given: Sequence[Tensor]) -> None:
        """Take what an op in PyTorch gave, as it is where its strides are those of the plan, else as a copy."""
        for name, tensor in zip(step.outputs, given, strict=True):
            value = self.plan.values[name]
            strides = self._numbers(value.strides)
            if value.root in self.given:
                self.tensor(name).copy_(tensor)
            elif value.root == name and _same_strides(tensor, strides) and tensor.data_ptr() % ALIGNMENT == 0:
                self._adopted[name] = tensor
            else:
                own = torch.empty(self._numel(name), dtype=value.dtype, device=self.device)
                self._adopted[name] = own
                self.tensor(name).copy_(tensor)

    def release(self, index: int) -> None:
        """Give back what no later step needs."""
        for root in [r for r in self._adopted if self._last.get(r) == index]:
            del self._adopted[root]
            for name in [n for n in self._tensors if self.plan.values[n].root == root]:
                del self._tensors[name]


def bound_edges(plan: Plan, variant: Variant) -> frozenset[str]:
    """Inputs and outputs whose memory is touched by our own kernels alone, so that a graph's kernels can be pointed elsewhere."""
    called = {plan.values[n].root for s in variant.steps if isinstance(s, CallStep) for n in (*s.inputs, *s.outputs)}
    edges = [*plan.inputs, *plan.outputs]
    own = {name for name in edges if plan.values[name].root == name and edges.count(name) == 1}
    shared = {plan.values[name].root for name in edges if name not in own}
    return frozenset(own - called - shared - set(plan.constants))


def lifetimes(plan: Plan, variant: Variant, env: Mapping[str, int]) -> tuple[list[Lifetime], dict[str, int]]:
    """Of every root but inputs and constants; and the last use of those that ops in PyTorch give, which are not in the arena.

    A root that several steps write, an op in PyTorch among them, is in the arena.
    """
    spans: dict[str, list[int]] = {}
    writers: dict[str, list[type]] = {}
    elsewhere = {*plan.inputs, *plan.constants}
    for index, step in enumerate(variant.steps):
        if isinstance(step, LaunchStep):
            touched, written = [a["value"] for a in step.arguments if isinstance(a, dict)], step.writes
        else:
            touched, written = [*step.inputs, *step.outputs], step.outputs
        for name in touched:
            root = plan.values[name].root
            if root not in elsewhere:
                spans.setdefault(root, [index, index])[1] = index
        for name in written:
            writers.setdefault(plan.values[name].root, []).append(type(step))
    for name in plan.outputs:
        if (root := plan.values[name].root) in spans:
            spans[root][1] = len(variant.steps)
    called = {root: spans[root][1] for root, kinds in writers.items() if kinds == [CallStep] and root in spans}
    lives = []
    for root, (first, last) in spans.items():
        value = plan.values[root]
        count = 1
        for n, s in zip(value.shape, value.strides, strict=True):
            count += (sizes.evaluate(n, env) - 1) * sizes.evaluate(s, env)
        lives.append(Lifetime(root, first, last, max(0, count) * value.dtype.itemsize))
    return lives, called


def _same_strides(tensor: Tensor, strides: Sequence[int]) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True))


class memory_errors:
    """Turns PyTorch's out-of-memory error into a sentence about this engine."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise out_of_memory(self.what) from error


def out_of_memory(what: str) -> OutOfDeviceMemory:
    free, total = torch.cuda.mem_get_info()
    return OutOfDeviceMemory(
        f"the GPU has no memory for {what}: {free >> 20} of {total >> 20} MiB are free; "
        "use a smaller batch, or free other tensors, and call again"
    )
