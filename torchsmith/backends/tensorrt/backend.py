"""Engines made and run by TensorRT, strongly typed: they compute in the graph's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.target import Target

if TYPE_CHECKING:
    from torchsmith.backends.tensorrt.run import TensorRtRunner


class TensorRtBackend:
    name = "tensorrt"
    int8 = Int8Abilities(unsigned=False)

    def available(self) -> str | None:
        return None if installed() else MISSING

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


BACKEND = TensorRtBackend()
