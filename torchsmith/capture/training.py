"""Whether an exported program was traced from a model in training mode."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from torchsmith.capture.source import source_line
from torchsmith.errors import CaptureError

# Operators that do something else in training, by the argument that says so.
_SWITCHES = {
    "aten::batch_norm": "training",
    "aten::instance_norm": "use_input_stats",
    "aten::dropout": "train",
    "aten::feature_dropout": "train",
    "aten::alpha_dropout": "train",
    "aten::feature_alpha_dropout": "train",
    "aten::rrelu": "training",
}


def check_inference(program: ExportedProgram, training: bool) -> None:
    """Raise CaptureError where the program drops values at random or updates statistics because of training mode.

    training: whether the model says that it is in training mode; True for an exported program, which cannot say. A model
    without such operators may be in either mode, and one in eval mode may still drop values on purpose.
    """
    if not training:
        return
    for node in program.graph.nodes:
        if node.op == "call_function" and (effect := _effect(node)):
            where = source_line(node)
            raise CaptureError(
                f"the model is in training mode: {node.target} {effect}{f' ({where})' if where else ''}; "
                "call model.eval() before compiling, or before exporting"
            )


def _effect(node: torch.fx.Node) -> str | None:
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    if name == "aten::scaled_dot_product_attention":
        return "drops values at random" if (_argument(node, "dropout_p") or 0) > 0 else None
    if name not in _SWITCHES or not _argument(node, _SWITCHES[name]):
        return None
    if name in ("aten::batch_norm", "aten::instance_norm"):
        return "updates its running statistics" if _argument(node, "running_mean") is not None else None
    return "drops values at random"


def _argument(node: torch.fx.Node, name: str) -> Any:
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None
