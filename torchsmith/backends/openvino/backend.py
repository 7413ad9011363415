"""Engines made and run by OpenVINO's CPU engine.

What it does otherwise than PyTorch: 64-bit integers are computed with 32 bits, and float64 not at all (such ops are refused).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchsmith import sizes
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node
from torchsmith.quantize.abilities import Int8Abilities, Product
from torchsmith.target import Target

if TYPE_CHECKING:
    from torchsmith.backends.openvino.run import OpenVinoRunner

Shapes = list[tuple[int, ...]]


def in_floats(product: Product) -> str:
    """Why OpenVINO 2026.4 does not compute a layer of pairs in int8, or is not let to; empty where it does."""
    if product.transposed and max(product.stride) > 1 and max(product.dilation) > 1:
        return "OpenVINO's int8 kernel of transposed convolutions with a stride and a dilation is wrong by a tenth"
    if product.transposed and product.input_moved:
        return "OpenVINO computes transposed convolutions of what has a zero point in floats"
    if product.dims and product.weight_moved:
        return "OpenVINO computes convolutions whose weights have zero points in floats"
    return ""


class OpenVinoBackend:
    name = "openvino"
    int8 = Int8Abilities(mixes_floats=False, pixels=True, in_floats=in_floats)  # floats: widen.py says why

    def available(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed; pip install openvino"
        return None

    def excludes(self, target: Target) -> str | None:
        return None

    def refuses(self, node: Node, target: Target) -> str | None:
        from torchsmith.backends.openvino import emit

        return emit.refuses(node, {})

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        """The graph's types say the precision: float32 stays float32, and what is typed bfloat16 computes in that.

        Only in a graph that has int8 and bfloat16, what is float32 computes in bfloat16 too, or, with grids, all in float32.
        """
        from torchsmith.backends.openvino import emit, engine
        from torchsmith.backends.openvino.widen import hint, is_mixed, widened

        model = emit.emit(widened(graph) if is_mixed(graph) else graph)
        types = {"inputs": [_text(v.type.shape) for v in graph.inputs], "outputs": [_text(v.type.shape) for v in graph.outputs]}
        return engine.pack(model, target, config, hint(graph), types, _typical(graph))

    def load(self, engine: bytes, target: Target) -> OpenVinoRunner:
        from torchsmith.backends.openvino import engine as engines
        from torchsmith.backends.openvino.run import OpenVinoRunner

        read = engines.parse(engine)  # checks every byte: once
        return OpenVinoRunner(engines.unpack(read, target), _output_shapes(read.extra["inputs"], read.extra["outputs"]))


def _text(shape: Sequence[Any]) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in shape]


def _typical(graph: Graph) -> Shapes:
    """Input shapes to time choices at: each symbol in the middle of its range, and not large."""
    from torchsmith.ir.dim import bind

    env = {name: min(max(low, 8), high or 64) for name, (low, high) in graph.ranges.items()}
    return [bind(value.type.shape, env) for value in graph.inputs]


def _output_shapes(inputs: list[list[int | str]], outputs: list[list[int | str]]) -> Callable[[Sequence[Tensor]], Shapes] | None:
    """The outputs' shapes as a function of the inputs, one Python expression; None where all are static."""
    if all(isinstance(size, int) for shape in outputs for size in shape):
        return None
    places: dict[str, str] = {}
    for number, shape in enumerate(inputs):
        for axis, size in enumerate(shape):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, f"inputs[{number}].shape[{axis}]")
    shown = [[str(s) if isinstance(s, int) else sizes.parse(s).source(places) for s in shape] for shape in outputs]
    source = ", ".join("(" + "".join(f"{size}, " for size in shape) + ")" for shape in shown)
    function: Callable[[Sequence[Tensor]], Shapes] = eval(f"lambda inputs: [{source}]")  # sizes.source writes arithmetic only
    return function


BACKEND = OpenVinoBackend()
