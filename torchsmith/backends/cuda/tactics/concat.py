"""Concatenation part by part: of those parts that their kernels could not write in place, or of more than one kernel can read."""

from __future__ import annotations

from collections.abc import Sequence

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import part_is_placed, part_view
from torchsmith.backends.cuda.program import OPERANDS
from torchsmith.backends.cuda.tactics.pointwise import PointwiseConfig, configs_of, emit_loop, loop_over
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value


class ConcatTemplate:
    name = "concat"
    kinds = frozenset({"Concat"})
    config_type = PointwiseConfig

    def configs(self, e: Emission) -> Sequence[PointwiseConfig]:
        left = _left(e)
        if len(left) == len(e.node.inputs) < OPERANDS:
            raise Unsupported("one kernel copies all the parts")
        self.emit(Emission(e.node, e.views, e._packed), PointwiseConfig(0, 128, 4))
        (output,) = e.node.outputs
        parts = [(e.node.inputs[i].type.shape, e.view(e.node.inputs[i]).strides) for i in left]
        loops = [loop_over(shape, e.view(output).strides, [(shape, strides)]) for shape, strides in parts]
        # those of a part that asks for tiles, if there is one, serve all
        return configs_of(e, max(loops, key=lambda loop: bool(loop.rows)), output.type.dtype.itemsize)

    def emit(self, e: Emission, config: PointwiseConfig) -> None:
        (output,) = e.node.outputs
        for index in _left(e):
            part, slot = e.node.inputs[index], part_view(e.node, index, e.view(output))
            loop = loop_over(part.type.shape, slot.strides, [(part.type.shape, e.view(part).strides)])
            tiles = bool(config.block_r)
            own = config if bool(loop.rows) == tiles or not tiles else PointwiseConfig(0, 512, 4)
            target = Value(f"{output.name}.part{index}", part.type)
            e.views[target] = slot
            emit_loop(e, loop, (), {part: slot}, own, {part: target})


def _left(e: Emission) -> list[int]:
    return [index for index in range(len(e.node.inputs)) if not part_is_placed(e.node, index, e.views)]


TEMPLATE = ConcatTemplate()
