"""The record of one compilation, as plain data: what `explain` shows and packages carry."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchsmith.backends import Backend
from torchsmith.build import Built
from torchsmith.config import Config
from torchsmith.partition.segments import Partitioned
from torchsmith.target import Target
from torchsmith.version import __version__


def report(
    partitioned: Partitioned, built: Built, backend: Backend, target: Target, config: Config, seconds: float
) -> dict[str, Any]:
    """seconds: the whole compilation's wall time."""
    inside = sum(len(e.segment.nodes) for e in built.engines)
    return {
        "torchsmith": __version__,
        "torch": torch.__version__,
        "backend": backend.name,
        "target": target.to_json(),
        "options": {name: _plain(value) for name, value in _flat(config).items()},
        "ops": inside + len(partitioned.refusals),
        "ops_in_engines": inside,
        "seconds": round(seconds, 3),
        "segments": [
            {
                "backend": backend.name,
                "precision": str(e.precision).removeprefix("torch."),
                "ops": len(e.segment.nodes),
                "inputs": [repr(v) for v in e.graph.inputs],
                "outputs": [repr(v) for v in e.graph.outputs],
                "engine_bytes": len(e.engine),
                "seconds": round(e.seconds, 3),
            }
            for e in built.engines
        ],
        "refusals": [dataclasses.asdict(r) for r in partitioned.refusals],
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
    return sorted(str(v) for v in value) if isinstance(value, frozenset) else value
