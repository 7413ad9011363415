"""Engines that are the graph itself, run by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.interpret import interpret
from torchsmith.ir.text import from_bytes, to_bytes
from torchsmith.ops.registry import load_all
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.target import Target


class ReferenceBackend:
    name = "reference"
    int8 = Int8Abilities(fp8_since=0)

    def available(self) -> str | None:
        return None

    def excludes(self, target: Target) -> str | None:
        return None

    def refuses(self, node: Node, target: Target) -> str | None:
        return None

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        return to_bytes(graph)

    def load(self, engine: bytes, target: Target) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        load_all()  # the ops that the graph names
        try:
            graph = from_bytes(engine)
        except (KeyError, ValueError, IndexError) as damage:
            raise EngineMismatch(f"these bytes are no reference engine ({damage}); compile the model again") from damage
        return lambda inputs: interpret(graph, inputs)


BACKEND = ReferenceBackend()
