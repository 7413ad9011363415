"""Tensors without elements, which some of OpenVINO's kernels do not survive."""

from __future__ import annotations

from torchsmith.backends.openvino.emit import Emission
from torchsmith.errors import Unsupported


def refuse_empty(e: Emission) -> None:
    """Raise Unsupported where an input or output of the node being emitted has no elements."""
    for value in (*e.node.inputs, *e.node.outputs):
        if 0 in value.type.shape:
            raise Unsupported(
                f"OpenVINO's CPU engine has no {type(e.node.op).__name__} for tensors without elements, such as {value.type}"
            )
