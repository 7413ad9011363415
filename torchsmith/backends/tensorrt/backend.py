"""Engines made and run by TensorRT, strongly typed: they compute in the graph's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchsmith.backends.tensorrt.library import MISSING, installed, supported, title
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.target import Target

if TYPE_CHECKING:
    from torchsmith.backends.tensorrt.run import TensorRtRunner


class TensorRtBackend:
    name = "tensorrt"
    int8 = Int8Abilities(unsigned=False, fp8_since=89)

    def available(self) -> str | None:
        return None if installed() else MISSING

    def excludes(self, target: Target) -> str | None:
        """Asked of TensorRT-RTX, which lists what it supports, before minutes go into an engine that it would not load."""
        known = supported()
        if not known or target.arch in known:
            return None
        listed = ", ".join(map(_capability, known))
        return (
            f"{title()} does not support compute capability {_capability(target.arch)}, but {listed}; compile the model with "
            "backend='cuda', torchsmith's own engines, which run from 8.0 on"
        )

    def refuses(self, node: Node, target: Target) -> str | None:
        from torchsmith.backends.tensorrt import emit

        return emit.refuses(node)

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        """Raises BuildError, with TensorRT's own words and the layer's place in the model, where TensorRT fails."""
        from torchsmith.backends.tensorrt import build

        return build.build_engine(graph, target, config)

    def load(self, engine: bytes, target: Target) -> TensorRtRunner:
        from torchsmith.backends.tensorrt.run import TensorRtRunner

        return TensorRtRunner(engine)


def _capability(arch: str) -> str:
    """ "9.0" for "sm_90"."""
    digits = arch.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


BACKEND = TensorRtBackend()
