"""Our own engines for NVIDIA GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from torch import Tensor

from torchsmith.backends.cuda.float8 import FLOAT8, LEAST_ARCHITECTURE
from torchsmith.backends.cuda.groups import LEAST_CHANNELS, merged
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node
from torchsmith.quantize.abilities import Int8Abilities, Product
from torchsmith.target import Target

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")


def in_floats(product: Product) -> str:
    """Why int8's kernels do not take a layer of pairs; empty where they do."""
    if product.weight_moved:
        return "CUDA engines compute layers whose weights have zero points in floats"
    if product.transposed:
        return "CUDA engines compute transposed convolutions in floats"
    if product.dims in (1, 3):
        return f"CUDA engines compute convolutions over {product.dims} dimension{'s' * (product.dims > 1)} in floats"
    if product.dims and not product.depthwise:
        groups, channels, _ = merged(product.groups, product.channels // product.groups, product.filters // product.groups)
        if channels < LEAST_CHANNELS:
            each = " a group" * (groups > 1)
            return f"CUDA engines compute convolutions of fewer than {LEAST_CHANNELS} channels{each} in floats"
    return ""


class CudaBackend:
    name = "cuda"
    # not gated: the product's kernel scales what it loads
    int8 = Int8Abilities(gated=False, adds=True, contested=True, in_floats=in_floats, fp8_since=LEAST_ARCHITECTURE)

    def available(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed; pip install triton"
        return None

    def excludes(self, target: Target) -> str | None:
        return None

    def refuses(self, node: Node, target: Target) -> str | None:
        if target.arch not in ARCHITECTURES:
            return f"the cuda backend builds for {', '.join(ARCHITECTURES)}, and the target is {target.arch}"
        if int(target.arch.removeprefix("sm_")) < LEAST_ARCHITECTURE:
            narrow = next((v for v in (*node.inputs, *node.outputs) if v.type.dtype == FLOAT8), None)
            if narrow is not None:
                return f"{narrow} is float8, which GPUs compute in from sm_{LEAST_ARCHITECTURE} on, and the target is {target.arch}"
        return None

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        from torchsmith.backends.cuda.build import build_engine

        return build_engine(graph, target, config)

    def load(self, engine: bytes, target: Target) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        from torchsmith.backends.cuda.run import CudaRunner

        return CudaRunner(engine, target)


BACKEND = CudaBackend()
