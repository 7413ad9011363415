"""Fake quantization that PyTorch took apart is put together: decomposed, it is an op that also gives a mask for the gradient."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.export import ExportedProgram

from torchsmith.lower.editing import Lowering, argument, call, calls, settled, substitute

aten = torch.ops.aten

_WHOLE = {
    aten.fake_quantize_per_tensor_affine_cachemask.default: aten.fake_quantize_per_tensor_affine.default,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default: aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten.fake_quantize_per_channel_affine_cachemask.default: aten.fake_quantize_per_channel_affine.default,
}


def whole_fake_quantize(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """What inference needs is the first of the two results; where the mask is used too, the op stays."""
    for node in calls(program):
        if node.target not in _WHOLE or how.keeps(node) or any(_takes_mask(user) for user in node.users):
            continue
        target = _WHOLE[node.target]
        new = call(node, target, *(argument(node, given.name) for given in target._schema.arguments))
        for user in list(node.users):
            if user.users:
                substitute(user, new)
            else:
                program.graph.erase_node(user)
        program.graph.erase_node(node)
    return settled(program)


def _takes_mask(user: fx.Node) -> bool:
    return user.target is not operator.getitem or (user.args[1:] != (0,) and bool(user.users))
