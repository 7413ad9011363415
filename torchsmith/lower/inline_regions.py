"""Regions under `torch.no_grad()` or autocast become plain nodes: inference takes no gradients, and casts can be written out."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from torchsmith.lower.editing import Lowering, calls, getattr_path, inline, lift, replace_outputs, settled

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_regions(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Put the bodies of such regions in the places of their calls. Regions under autocast get its casts, as PyTorch traces them."""
    if any(node.target is _AUTOCAST for node in calls(program)):
        program = program.run_decompositions({})
    while regions := [node for node in calls(program) if node.target is _GRAD]:
        for node in regions:
            _, body, *arguments = node.args
            assert isinstance(body, fx.Node) and isinstance(body.target, str)
            module = getattr_path(program.graph_module, body.target)
            result = inline(node, module, arguments, lambda tensor: lift(program, tensor, "c_inlined"))
            assert replace_outputs(node, result), f"{node.format_node()} gives something other than tensors"
            if not body.users:
                program.graph.erase_node(body)
    return settled(program)
