"""A depthwise convolution and the squeeze-and-excite of its result: two kernels, of which the second is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.tactics.depthwise import (
    USUAL_BATCH,
    USUAL_SHARES,
    Depthwise,
    DepthwiseConfig,
    depthwise_configs,
    depthwise_of,
    emit_depthwise,
)
from torchsmith.backends.cuda.tactics.parts import Parts
from torchsmith.backends.cuda.tactics.squeeze_excite import ExciteConfig, Layers, emit_excite, excite_configs, layers_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import product
from torchsmith.ir.graph import Node


@dataclass(frozen=True)
class DepthwiseGateConfig:
    """The fields of `DepthwiseConfig`; excite_*: those of `ExciteConfig`."""

    block_c: int
    tile_h: int
    tile_w: int
    groups_h: int
    groups_w: int
    num_warps: int
    early: bool
    excite_n: int
    excite_c: int
    excite_warps: int

    def convolution(self) -> DepthwiseConfig:
        return DepthwiseConfig(self.block_c, self.tile_h, self.tile_w, self.groups_h, self.groups_w, self.num_warps, self.early)


class DepthwiseGateTemplate:
    name = "depthwise_gate"
    kinds = frozenset({"depthwise_gate"})
    config_type = DepthwiseGateConfig

    def configs(self, e: Emission) -> Sequence[DepthwiseGateConfig]:
        p, layers = _parts(e)
        found: list[DepthwiseGateConfig] = []
        for rank, c in enumerate(depthwise_configs(e, p, layers.units)):
            images, shares = e.likely(p.x_sizes[0], USUAL_BATCH), e.likely(product(p.blocks(c)), USUAL_SHARES)
            # another gate kernel beside the best convolutions only: the two are independent but for the number of shares
            for excite in excite_configs(images, layers.channels, layers.units, shares)[: 3 if rank == 0 else 1]:
                fields = (c.block_c, c.tile_h, c.tile_w, c.groups_h, c.groups_w, c.num_warps, c.early)
                found.append(DepthwiseGateConfig(*fields, excite.block_n, excite.block_c, excite.num_warps))
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found[:12]

    def emit(self, e: Emission, config: DepthwiseGateConfig) -> None:
        p, layers = _parts(e)
        shares = product(p.blocks(config.convolution()))
        partial = e.temporary((p.y_sizes[0], shares, layers.units), torch.float32, "squeezed")
        emit_depthwise(e, p, config.convolution(), layers.first, partial, layers.x)
        gate = ExciteConfig(config.excite_n, config.excite_c, config.excite_warps)
        emit_excite(e, layers, partial, product(p.y_sizes[2:]), gate)


def _parts(e: Emission) -> tuple[Depthwise, Layers]:
    """The convolution, which gives what is no gate among the node's outputs, and the layers of the mean."""
    assert isinstance(e.node.op, Fused), e.node
    nodes = e.node.op.body.nodes
    start = next(i for i, n in enumerate(nodes) if type(n.op).__name__ == "Reduce")
    main = next(n for n in nodes[:start] if type(n.op).__name__ == "Convolution")
    layers = layers_of(e, nodes[start:])
    written = [v for v in e.node.outputs if v is not layers.gate]
    if len(written) != 1:
        raise Unsupported("the convolution's result is wanted in several dtypes")
    after = list[Node]()
    reached = set(main.outputs)
    for node in nodes[:start]:
        if reached.intersection(node.inputs):
            reached.update(node.outputs)
            after.append(node)
    before = tuple(n for n in nodes[:start] if n is not main and n not in after)
    return depthwise_of(e, Parts(main, before, tuple(after), tuple(written)), written[0]), layers


TEMPLATE = DepthwiseGateTemplate()
