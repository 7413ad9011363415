"""Regions under `torch.no_grad()` and the like become plain nodes: inference takes no gradients."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from torchsmith.lower.editing import Lowering, calls, getattr_path, inline, lift, replace_outputs, settled


def inline_regions(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Put the bodies of `wrap_with_set_grad_enabled` in the places of their calls."""
    while regions := [node for node in calls(program) if _is_grad_region(node)]:
        for node in regions:
            _, body, *arguments = node.args
            assert isinstance(body, fx.Node)
            module = getattr_path(program.graph_module, body.target)  # type: ignore[arg-type]
            result = inline(node, module, arguments, lambda tensor: lift(program, tensor, "c_inlined"))
            assert replace_outputs(node, result), f"{node.format_node()} gives something other than tensors"
            if not body.users:
                program.graph.erase_node(body)
    return settled(program)


def _is_grad_region(node: fx.Node) -> bool:
    return node.target is torch.ops.higher_order.wrap_with_set_grad_enabled
