"""Recorded CUDA graphs whose edges can be put elsewhere: a call's own tensors in the place of the memory that was recorded."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.backends.cuda.driver import Function, check, driver

_unused: deque[Any] = deque()  # executables of graphs that are gone
SCRATCH_POINTERS = 2  # that follow a Triton kernel's arguments


@dataclass(frozen=True)
class Cell:
    """A kernel argument that is an address in an edge's memory. node: a number; offset: bytes from the edge's first one."""

    node: int
    value: ctypes.c_uint64
    offset: int


class RecordedGraph:
    """An executable graph of what was captured. Not thread-safe: its owner lets one thread in at a time."""

    def __init__(self, captured: torch.cuda.CUDAGraph, functions: Sequence[Function], edges: Mapping[str, tuple[int, int]]) -> None:
        """captured: with keep_graph=True. edges: names with (first address, bytes); only kernels of `functions` touch them."""
        cuda = driver()
        self._launch, self._set_params = cuda.cuGraphLaunch, cuda.cuGraphExecKernelNodeSetParams  # what every call calls
        self._captured = captured  # its memory pool is the graph's
        while _unused:
            cuda.cuGraphExecDestroy(_unused.popleft())
        graph = cuda.CUgraph(captured.raw_cuda_graph())
        self._executable = check(cuda.cuGraphInstantiate(graph, 0), "make a graph of the engine's steps")
        self._nodes: list[tuple[Any, Any]] = []
        self._kept: list[Any] = []
        self.cells: dict[str, list[Cell]] = {name: [] for name in edges}
        self._at = {name: first for name, (first, _) in edges.items()}
        _, count = check(cuda.cuGraphGetNodes(graph, 0), "look at the graph")
        nodes, _ = check(cuda.cuGraphGetNodes(graph, count), "look at the graph")
        known = {int(f.handle): f for f in functions}
        kernel_node = cuda.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
        for node in nodes:
            if check(cuda.cuGraphNodeGetType(node), "look at a step") != kernel_node:
                continue
            params = check(cuda.cuGraphKernelNodeGetParams(node), "look at a step")
            function = known.get(int(params.func))
            if function is not None:
                self._find_edges(node, params, function, edges)

    def _find_edges(self, node: Any, params: Any, function: Function, edges: Mapping[str, tuple[int, int]]) -> None:
        given = ctypes.cast(int(params.kernelParams), ctypes.POINTER(ctypes.c_void_p))
        found: list[tuple[str, int, int]] = []
        for index, type_ in enumerate(function.types):
            if type_ is not ctypes.c_uint64:
                continue
            address = ctypes.c_uint64.from_address(given[index] or 0).value
            for name, (first, size) in edges.items():
                if first <= address < first + max(1, size):
                    found.append((name, index, address - first))
        if not found:
            return
        own = [type_.from_address(given[i] or 0).value for i, type_ in enumerate(function.types)]
        values = [type_(value) for type_, value in zip(function.types, own, strict=True)]
        values += [ctypes.c_uint64(0) for _ in range(SCRATCH_POINTERS)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        params.kernelParams = ctypes.addressof(pointers)
        self._kept.append((values, pointers))
        for name, index, offset in found:
            self.cells[name].append(Cell(len(self._nodes), values[index], offset))
        self._nodes.append((node, params))

    def put(self, name: str, address: int) -> None:
        """Let an edge be at another address from the next launch on; launches that are under way keep theirs."""
        if self._at[name] == address:
            return
        changed: set[int] = set()
        for cell in self.cells[name]:
            if cell.value.value != address + cell.offset:
                cell.value.value = address + cell.offset
                changed.add(cell.node)
        for index in changed:
            node, params = self._nodes[index]
            (error,) = self._set_params(self._executable, node, params)
            if error != 0:
                check((error,), "give the engine its inputs and outputs")
        self._at[name] = address

    def launch(self, stream: int) -> None:
        (error,) = self._launch(self._executable, stream)
        if error != 0:
            check((error,), "launch the engine's graph")

    def __del__(self) -> None:
        executable = getattr(self, "_executable", None)
        if executable is not None:
            _unused.append(executable)  # destroyed when another is made: this may be while a graph is recorded
