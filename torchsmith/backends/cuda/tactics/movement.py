"""Reshapes that strides cannot say: one copy, read in the order of the source and written where each element is to be."""

from __future__ import annotations

from collections.abc import Sequence

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import View, reshaped_strides
from torchsmith.backends.cuda.tactics.pointwise import Loop, PointwiseConfig, configs_of, emit_loop, loop_over
from torchsmith.errors import Unsupported


class MovementTemplate:
    name = "movement"
    kinds = frozenset({"Reshape"})
    config_type = PointwiseConfig

    def configs(self, e: Emission) -> Sequence[PointwiseConfig]:
        self.emit(Emission(e.node, e.views, e._packed), PointwiseConfig(0, 128, 4))
        return configs_of(e, loop_of(e)[0], e.node.outputs[0].type.dtype.itemsize)

    def emit(self, e: Emission, config: PointwiseConfig) -> None:
        (x,), (output,) = e.node.inputs, e.node.outputs
        loop, view = loop_of(e)
        emit_loop(e, loop, (), {x: view}, config, {x: output})


def loop_of(e: Emission) -> tuple[Loop, View]:
    """The loop over the source's shape, and the output as a view of that shape."""
    (x,), (output,) = e.node.inputs, e.node.outputs
    view = e.view(output)
    strides = reshaped_strides(output.type.shape, view.strides, x.type.shape)
    if strides is None:
        raise Unsupported(f"{x.type} into {output.type} with strides {view.strides}")
    return loop_over(x.type.shape, strides, [(x.type.shape, e.view(x).strides)]), View(view.root, strides, view.offset)


TEMPLATE = MovementTemplate()
