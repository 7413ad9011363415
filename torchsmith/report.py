"""The record of one compilation, as plain data: what `explain` shows and packages carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchsmith.backends import Backend
from torchsmith.build import Built
from torchsmith.capture import NotConvertible
from torchsmith.config import Config
from torchsmith.ir.graph import Graph
from torchsmith.partition.segments import Partitioned, Refusal
from torchsmith.quantize.layers import LayerPrecision, is_quantized, layers_of
from torchsmith.sparsity.recognise import matrix_weights
from torchsmith.target import Target
from torchsmith.version import __version__


def report(
    partitioned: Partitioned, built: Built, backend: Backend, target: Target, config: Config, seconds: float,
    kept: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """seconds: the whole compilation's wall time. kept: by the names of nodes, why calibration left layers in floats."""
    inside = sum(len(e.segment.nodes) for e in built.engines)
    layers = _layers(partitioned, built, backend, config, kept or {})
    return {
        **_head(backend, target, config, seconds),
        "ops": inside + len(partitioned.refusals),
        "ops_in_engines": inside,
        "segments": [
            {
                "backend": backend.name,
                "precision": str(e.precision).removeprefix("torch."),
                "ops": len(e.segment.nodes),
                "inputs": [repr(v) for v in e.graph.inputs],
                "outputs": [repr(v) for v in e.graph.outputs],
                "engine_bytes": len(e.engine),
                **_weights(e.graph),
                **_counts([layers[node.name] for node in e.segment.nodes if node.name in layers]),
                "seconds": round(e.seconds, 3),
            }
            for e in built.engines
        ],
        "layers": [dataclasses.asdict(layer) for layer in layers.values()],
        "refusals": [dataclasses.asdict(r) for r in partitioned.refusals],
    }


def _layers(
    partitioned: Partitioned, built: Built, backend: Backend, config: Config, kept: Mapping[str, str]
) -> dict[str, LayerPrecision]:
    """The layers by the names of their nodes; none where nobody asked for eight bits."""
    floats = {node.name: e.precision for e in built.engines for node in e.segment.nodes}
    found = layers_of(partitioned.program, floats, partitioned.in_torch, kept, backend.int8.in_floats)
    asked = any(dtype.itemsize == 1 for dtype in config.quantize.enabled_precisions)
    return found if asked or is_quantized(partitioned.program) else {}


def _counts(layers: Sequence[LayerPrecision]) -> dict[str, int]:
    """How many layers an engine has, and how many of them compute in eight bits."""
    return {"layers": len(layers), "eight_bit_layers": sum(not layer.reason for layer in layers)} if layers else {}


def _weights(graph: Graph) -> dict[str, int]:
    """How many matrix products have constant weights, and how many of those are 2:4."""
    weights = matrix_weights(graph)
    return {"weights": len(weights), "two_four_weights": sum(weight.two_four for weight in weights)}


def report_of_parts(
    script: str, why: NotConvertible, parts: Sequence[tuple[str, Mapping[str, Any]]],
    backend: Backend, target: Target, config: Config, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The same of a ScriptModule that was compiled in parts. script: its class. parts: each one's path and own report.

    Engines and refusals have the path of their part; one more refusal says why the rest stayed in TorchScript.
    """
    rest = Refusal("", script, str(why), why.where)
    return {
        **_head(backend, target, config, seconds),
        "script": script,
        "ops": sum(part["ops"] for _, part in parts),
        "ops_in_engines": sum(part["ops_in_engines"] for _, part in parts),
        "segments": [{"part": path, **segment} for path, part in parts for segment in part["segments"]],
        "layers": [{**layer, "name": f"{path}.{layer['name']}"} for path, part in parts for layer in part["layers"]],
        "refusals": [
            *({**refusal, "node": f"{path}.{refusal['node']}"} for path, part in parts for refusal in part["refusals"]),
            dataclasses.asdict(rest),
        ],
    }


def _head(backend: Backend, target: Target, config: Config, seconds: float) -> dict[str, Any]:
    return {
        "torchsmith": __version__,
        "torch": torch.__version__,
        "backend": backend.name,
        "target": target.to_json(),
        "options": {name: _plain(value) for name, value in _flat(config).items()},
        "seconds": round(seconds, 3),
    }


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat.update(
            {g.name: getattr(value, g.name) for g in dataclasses.fields(value)}
            if dataclasses.is_dataclass(value)
            else {f.name: value}
        )
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(str(v) for v in value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__  # a calibrator is no data
