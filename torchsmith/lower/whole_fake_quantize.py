"""Fake quantization that PyTorch took apart is put together: decomposed, it is an op that also gives a mask for the gradient."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.lower.editing import Lowering, argument, call, calls, lift, settled, substitute

aten = torch.ops.aten

_WHOLE = {
    aten.fake_quantize_per_tensor_affine_cachemask.default: aten.fake_quantize_per_tensor_affine.default,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default: aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten.fake_quantize_per_channel_affine_cachemask.default: aten.fake_quantize_per_channel_affine.default,
}


# Their scales and zero points are learned, floats both; the first has one of each.
_LEARNED = {
    aten._fake_quantize_learnable_per_tensor_affine.default: aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten._fake_quantize_learnable_per_channel_affine.default: aten.fake_quantize_per_channel_affine.default,
}


def whole_fake_quantize(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """What inference needs is the first of the two results; where the mask is used too, the op stays.

    What is learned is rounded as the learning op rounds it; where it is no constant, that op stays.
    """
    tensors = parameters_of(program)
    for node in calls(program):
        if node.target in _LEARNED and not how.keeps(node):
            scale, point = (tensors.get(getattr(argument(node, name), "name", "")) for name in ("scale", "zero_point"))
            if scale is not None and point is not None:
                _make_whole(program, node, scale.detach(), point.detach())
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


def _make_whole(program: ExportedProgram, node: fx.Node, scale: Tensor, zero_point: Tensor) -> None:
    """The op of whole zero points in the place of one of learned ones."""
    low, high = argument(node, "quant_min"), argument(node, "quant_max")
    channels = ["axis"] if "channel" in str(node.target) else []
    # as the op itself rounds it: its greatest number is (high - zero_point) * scale
    greatest = node.target(2 * scale * (high - low), scale, zero_point, *(0 for _ in channels), low, high)  # type: ignore[operator]
    whole = torch.nan_to_num(high - greatest / scale).round().clamp(low, high).to(torch.int32)
    x, step, point = argument(node, "self"), argument(node, "scale"), lift(program, whole, "c_zero_point")
    new = call(node, _LEARNED[node.target], x, step, point, *(argument(node, name) for name in channels), low, high)  # type: ignore[index]
    substitute(node, new)


def _takes_mask(user: fx.Node) -> bool:
    return user.target is not operator.getitem or (user.args[1:] != (0,) and bool(user.users))
