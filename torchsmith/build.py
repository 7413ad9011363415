"""Segments into engines, and engines into the program."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from torchsmith import debug
from torchsmith.backends import Backend
from torchsmith.config import Config
from torchsmith.convert import convert, typical_of
from torchsmith.errors import BuildError, Unsupported
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.partition.segments import Partitioned, Segment
from torchsmith.partition.splice import splice
from torchsmith.quantize.precision import choose_precision, reduce_precision
from torchsmith.target import Target


@dataclass(frozen=True)
class BuiltEngine:
    """One segment's engine. precision: what its matrix work computes in. seconds: what building took."""

    segment: Segment
    graph: Graph
    engine: bytes
    precision: torch.dtype
    seconds: float


@dataclass(frozen=True)
class Built:
    """The hybrid: the program with a call to an engine in place of every segment."""

    program: ExportedProgram
    engines: tuple[BuiltEngine, ...]


def build(
    partitioned: Partitioned, backend: Backend, target: Target, config: Config, progress: Callable[[str], None] = debug.tell
) -> Built:
    """Convert, quantize and build every segment. Raises BuildError where the backend fails on a graph it had accepted."""
    precision = choose_precision(config.quantize.enabled_precisions, target)
    typical, engines = typical_of(partitioned.program), []
    for number, segment in enumerate(partitioned.segments):
        progress(f"build, engine {number + 1} of {len(partitioned.segments)}, {len(segment.nodes)} ops")
        started = time.perf_counter()
        graph = convert(partitioned.program, segment.inputs, segment.nodes, segment.outputs)
        debug.graph(f"convert-{number}", graph)
        graph = reduce_precision(graph, precision)
        debug.graph(f"quantize-{number}", graph)
        graph = dataclasses.replace(graph, typical=typical)
        try:
            engine = backend.build(graph, target, config.build)
        except Unsupported as refusal:
            raise BuildError(
                f"the {backend.name} backend accepted every node of segment {number} and refused the whole: {refusal}"
            ) from refusal
        engines.append(BuiltEngine(segment, graph, engine, precision, time.perf_counter() - started))
    return Built(splice(partitioned.program, [_splicing(e, backend, target) for e in engines]), tuple(engines))


def _splicing(built: BuiltEngine, backend: Backend, target: Target) -> Any:
    segment = built.segment
    engine = torch.frombuffer(bytearray(built.engine), dtype=torch.uint8)
    return (
        list(segment.nodes),
        list(segment.inputs),
        list(segment.outputs),
        engine,
        spec_of(built.graph, built.engine, backend, target),
    )


def spec_of(graph: Graph, engine: bytes, backend: Backend, target: Target) -> str:
    """What the program says of an engine: its backend, the engine's checksum, and the types in and out."""
    return json.dumps(
        {
            "backend": backend.name,
            "id": hashlib.sha256(engine).hexdigest(),
            "symbols": sorted(graph.ranges),
            "inputs": [_type(v.type) for v in graph.inputs],
            "outputs": [_type(v.type) for v in graph.outputs],
            "device": target.device,
        }
    )


def _type(type: TensorType) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in type.shape]
    return {"shape": shape, "dtype": str(type.dtype).removeprefix("torch.")}
