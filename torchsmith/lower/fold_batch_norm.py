"""Scales and shifts per channel go into the weights before or after them: batch norm, affine layers, layer scale.

A convolution, a transposed convolution or a linear layer takes in what follows it; a linear layer, or a convolution whose
padding does not see the shift, also what precedes it. The arithmetic is done in float64 and rounded once. Where training has
fake-quantized a weight, its steps are scaled instead.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torchsmith.convert import parameters_of
from torchsmith.lower.editing import Lowering, argument, calls, lift, same_type, set_argument, settled, substitute
from torchsmith.lower.quantized_weights import placed, quantized_weight
from torchsmith.lower.remove_noops import permutation

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_LAYERS = {*_CONVOLUTIONS, *_TRANSPOSED, aten.convolution.default, aten.linear.default}
# The channels are still there after these, if their number and what lies behind them is the same.
_RESHAPES = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_as.default, aten.reshape_as.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
}  # fmt: skip
# Ops that ask this argument for nothing but its shape or dtype.
_LOOKS_ONLY: dict[Any, int] = {
    aten.reshape_as.default: 1,
    aten.view_as.default: 1,
    aten.expand_as.default: 1,
    aten.type_as.default: 1,
}
_STATISTICS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}


@dataclass(frozen=True)
class Affine:
    """result = x * scale + shift, along one dimension of x. scale, shift: (channels,), or () for all alike; float64."""

    x: fx.Node
    result: fx.Node
    axis: int
    scale: Tensor
    shift: Tensor

    @property
    def is_uniform(self) -> bool:
        return self.scale.dim() == 0 and self.shift.dim() == 0


def fold_batch_norm(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Layers whose result has other users are left as they are, and so are weights that would overflow their dtype."""
    if not how.config.fold_batch_norm:
        return program
    tensors = parameters_of(program)
    for node in calls(program):
        affine = None if how.keeps(node) else _affine(node, tensors)
        if affine is None:
            continue
        before = _layer_before(affine)
        if before is not None and not how.keeps(before) and _scale_outputs(program, before, affine, tensors):
            _drop(node, affine)
            continue
        after = _layer_after(affine)
        if after is not None and not how.keeps(after) and _scale_inputs(program, after, affine, tensors):
            _drop(node, affine)
    return settled(program)


def _drop(node: fx.Node, affine: Affine) -> None:
    substitute(affine.result, affine.x)
    if affine.result is not node:
        node.graph.erase_node(node)


def _affine(node: fx.Node, tensors: dict[str, Tensor]) -> Affine | None:
    """Read a node as a scale and a shift by constants."""
    if node.target in _STATISTICS:
        return _normalisation(node, tensors)
    if node.target in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor):
        return _arithmetic(node, tensors)
    if node.target is aten.addcmul.default:
        return _addcmul(node, tensors)
    return None


def _normalisation(node: fx.Node, tensors: dict[str, Tensor]) -> Affine | None:
    result = node
    if node.target is aten.batch_norm.default:
        if argument(node, "training"):
            return None
    else:  # it also returns statistics, which nobody must need
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users) or len(node.users) != 1:
            return None
        (result,) = node.users
    x = node.args[0]
    mean, var = (_constant(argument(node, name), tensors) for name in ("running_mean", "running_var"))
    if not isinstance(x, fx.Node) or mean is None or var is None or x.meta["val"].dim() < 2:
        return None
    weight, bias = argument(node, "weight"), argument(node, "bias")
    gamma = torch.ones_like(mean) if weight is None else _constant(weight, tensors)
    beta = torch.zeros_like(mean) if bias is None else _constant(bias, tensors)
    if gamma is None or beta is None:
        return None
    scale = gamma / torch.sqrt(var + argument(node, "eps"))
    return Affine(x, result, 1, scale, beta - mean * scale)


def _arithmetic(node: fx.Node, tensors: dict[str, Tensor]) -> Affine | None:
    """x * c, c * x, x / c, x + c, c + x, x - c with a constant c that has one number a channel."""
    left, right = node.args[:2]
    swapped = _constant(left, tensors) is not None and node.target in (aten.mul.Tensor, aten.add.Tensor)
    x, other = (right, left) if swapped else (left, right)
    constant = _constant(other, tensors)
    if constant is None or not isinstance(x, fx.Node) or not same_type(x.meta["val"], node.meta["val"]):
        return None
    found = _channels(constant, x.meta["val"].dim())
    if found is None:
        return None
    axis, numbers = found
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(alpha, (int, float)) or (swapped and alpha != 1):
        return None
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    scale, shift = {
        aten.mul.Tensor: (numbers, zero),
        aten.div.Tensor: (1 / numbers, zero),
        aten.add.Tensor: (one, numbers * alpha),
        aten.sub.Tensor: (one, -numbers * alpha),
    }[node.target]  # type: ignore[index]
    return Affine(x, node, axis, scale, shift)


def _addcmul(node: fx.Node, tensors: dict[str, Tensor]) -> Affine | None:
    """shift + value * scale * x."""
    shift, scale, x = _constant(node.args[0], tensors), _constant(node.args[1], tensors), node.args[2]
    if scale is None:
        scale, x = _constant(node.args[2], tensors), node.args[1]
    value = node.kwargs.get("value", 1)
    if (
        shift is None
        or scale is None
        or not isinstance(x, fx.Node)
        or not isinstance(value, (int, float))
        or not same_type(x.meta["val"], node.meta["val"])
    ):
        return None
    rank = x.meta["val"].dim()
    shifts, scales = _channels(shift, rank), _channels(scale, rank)
    if shifts is None or scales is None or len({axis for axis, numbers in (shifts, scales) if numbers.dim()}) > 1:
        return None
    axis = max(shifts[0], scales[0])
    return Affine(x, node, axis, scales[1] * value, shifts[1])


def _constant(value: Any, tensors: dict[str, Tensor]) -> Tensor | None:
    """A number or a parameter, in float64."""
    if isinstance(value, fx.Node):
        tensor = tensors.get(value.name) if value.op == "placeholder" else None
        return tensor.detach().double() if tensor is not None and tensor.is_floating_point() else None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    return None


def _channels(constant: Tensor, rank: int) -> tuple[int, Tensor] | None:
    """The only dimension (of `rank`, after broadcasting) along which a constant differs, and its numbers there."""
    wide = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if constant.dim() > rank or len(wide) > 1:
        return None
    if not wide:
        return 0, constant.reshape(())
    return wide[0] + rank - constant.dim(), constant.reshape(-1)


def _layer_before(affine: Affine) -> fx.Node | None:
    """The layer whose output channels the affine scales, through reshapes and transpositions that nobody else uses."""
    node, axis = affine.x, affine.axis
    while len(_users(node)) == 1:
        if node.target in _LAYERS:
            return node if affine.is_uniform or axis == _channel_axis(node, node) else None
        before = node.args[0] if node.args else None
        found = _carried(before, node, axis) if isinstance(before, fx.Node) else None
        if found is None:
            return None
        node, axis = before, found  # type: ignore[assignment]
    return None


def _layer_after(affine: Affine) -> fx.Node | None:
    """The layer whose input channels the affine scales, and that alone takes it, in the same way."""
    node, axis = affine.result, affine.axis
    while len(users := _users(node)) == 1:
        (user,) = users
        if user.args[0] is not node:
            return None
        if user.target in _LAYERS:
            return user if affine.is_uniform or axis == _channel_axis(user, node) else None
        found = _carried(node, user, axis, back=False)
        if found is None:
            return None
        node, axis = user, found
    return None


def _channel_axis(layer: fx.Node, value: fx.Node) -> int:
    """Which dimension of a layer's input or output its channels are."""
    rank: int = value.meta["val"].dim()
    return rank - 1 if layer.target is aten.linear.default else rank - layer.args[1].meta["val"].dim() + 1  # type: ignore[union-attr]


def _carried(before: fx.Node, node: fx.Node, axis: int, back: bool = True) -> int | None:
    """The dimension of `before` that is `axis` of `node`, a reshape or transposition of it; or the other way round."""
    if (order := permutation(node)) is not None:
        return order[axis] if back else order.index(axis)
    if node.target not in _RESHAPES:
        return None
    inner, outer = before.meta["val"].shape, node.meta["val"].shape
    return _same_axis(inner, outer, axis) if back else _same_axis(outer, inner, axis)


def _same_axis(before: Any, after: Any, axis: int) -> int | None:
    """Which dimension of `before` a reshape made `axis` of `after`; None where it split or joined it."""
    behind = math.prod(after[axis + 1 :])
    for candidate in range(len(before)):
        if statically_known_true(before[candidate] == after[axis]) and statically_known_true(
            math.prod(before[candidate + 1 :]) == behind
        ):
            return candidate
    return None


def _users(node: fx.Node) -> list[fx.Node]:
    """Who needs the node's elements, not only its shape."""
    return [
        user
        for user in node.users
        if not (user.target is aten.sym_size.int or (_LOOKS_ONLY.get(user.target) == 1 and user.args[0] is not node))
    ]


def _scale_outputs(program: ExportedProgram, layer: fx.Node, affine: Affine, tensors: dict[str, Tensor]) -> bool:
    """Put scale and shift into the layer's weight and bias. False where those are no constants, or would overflow."""
    weight, bias = _weight(layer, tensors), _bias(layer, tensors)
    if bias is None:
        return False
    scale = affine.scale.expand(_output_channels(layer))
    if weight is None:
        return _scale_steps(program, layer, scale, bias * scale + affine.shift, tensors)
    return _set_weights(program, layer, _scaled(weight, _along_outputs(layer, scale)), bias * scale + affine.shift, tensors)


def _scale_steps(program: ExportedProgram, layer: fx.Node, scale: Tensor, bias: Tensor, tensors: dict[str, Tensor]) -> bool:
    """The same for a weight that is fake-quantized. False where that is not alone the layer's, or its integers would change."""
    node = layer.args[1]
    assert isinstance(node, fx.Node)
    weight = None if _is_transposed(layer) or len(node.users) > 1 else quantized_weight(node, tensors)
    scaled = None if weight is None else weight.scaled(scale.to(weight.weight.device))
    if scaled is None or not _set_constants(program, layer, _changed_bias(layer, bias, scaled.weight.dtype), tensors):
        return False
    set_argument(layer, "weight", placed(program, layer, scaled))
    program.graph.erase_node(node)
    # what is scaled again finds its constants here
    tensors.update((a.name, program.constants[a.name]) for a in layer.args[1].all_input_nodes)  # type: ignore[union-attr]
    return True


def _scale_inputs(program: ExportedProgram, layer: fx.Node, affine: Affine, tensors: dict[str, Tensor]) -> bool:
    """The same for a layer that comes after. False also where the layer's borders would see less of the shift."""
    weight, bias = _weight(layer, tensors), _bias(layer, tensors)
    if weight is None or bias is None:
        return False
    shifts = bool((affine.shift != 0).any())
    if shifts and layer.target is not aten.linear.default and (_is_transposed(layer) or _is_padded(layer)):
        return False
    scale, shift = (_along_inputs(layer, numbers) for numbers in (affine.scale, affine.shift))
    moved = (weight * shift).flatten(1).sum(1) if shifts else torch.zeros((), dtype=torch.float64)
    return _set_weights(program, layer, _scaled(weight, scale), bias + moved, tensors)


def _weight(layer: fx.Node, tensors: dict[str, Tensor]) -> Tensor | None:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    return tensors[weight.name].detach() if weight.name in tensors else None


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The product, computed in float64 and rounded to the weight's dtype, in one pass over the weight."""
    return torch.mul(weight, scale.to(weight.device), out=torch.empty_like(weight, memory_format=torch.contiguous_format))


def _bias(layer: fx.Node, tensors: dict[str, Tensor]) -> Tensor | None:
    """The layer's bias in float64, 0 where it has none, None where it is no constant."""
    given = argument(layer, "bias")
    return torch.zeros((), dtype=torch.float64) if given is None else _constant(given, tensors)


def _set_weights(program: ExportedProgram, layer: fx.Node, weight: Tensor, bias: Tensor, tensors: dict[str, Tensor]) -> bool:
    return _set_constants(program, layer, {"weight": weight, **_changed_bias(layer, bias, weight.dtype)}, tensors)


def _changed_bias(layer: fx.Node, bias: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The bias by its argument's name; nothing where there is none, and need not be one."""
    if argument(layer, "bias") is None and not bool((bias != 0).any()):
        return {}
    return {"bias": bias.to(dtype).expand(_output_channels(layer))}


def _set_constants(program: ExportedProgram, layer: fx.Node, changes: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    """Put constants in the places of arguments. False, with nothing done, where one is not finite."""
    # a sum in float64 is finite where all that is summed is
    if not all(math.isfinite(tensor.sum(dtype=torch.float64)) for tensor in changes.values()):
        return False
    for name, tensor in changes.items():
        node = lift(program, tensor, f"c_{name}")
        tensors[node.name] = tensor
        set_argument(layer, name, node)
    return True


def _is_padded(layer: fx.Node) -> bool:
    padding = argument(layer, "padding")
    return padding != "valid" and any(padding if isinstance(padding, (tuple, list)) else [padding])


def _is_transposed(layer: fx.Node) -> bool:
    return layer.target in _TRANSPOSED or (layer.target is aten.convolution.default and bool(argument(layer, "transposed")))


def _output_channels(layer: fx.Node) -> int:
    shape = layer.args[1].meta["val"].shape  # type: ignore[union-attr]
    return int(shape[1] * argument(layer, "groups") if _is_transposed(layer) else shape[0])


def _along_outputs(layer: fx.Node, numbers: Tensor) -> Tensor:
    """Numbers per output channel, shaped to multiply the layer's weight."""
    shape = layer.args[1].meta["val"].shape  # type: ignore[union-attr]
    if not _is_transposed(layer):  # (outputs, inputs / groups, ...)
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    return _per_group(numbers, argument(layer, "groups"), shape)  # (inputs, outputs / groups, ...)


def _along_inputs(layer: fx.Node, numbers: Tensor) -> Tensor:
    """Numbers per input channel, or one for all, shaped to multiply the layer's weight."""
    shape = layer.args[1].meta["val"].shape  # type: ignore[union-attr]
    if numbers.dim() == 0:
        return numbers
    if _is_transposed(layer):
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    return _per_group(numbers, 1 if layer.target is aten.linear.default else argument(layer, "groups"), shape)


def _per_group(numbers: Tensor, groups: int, shape: torch.Size) -> Tensor:
    """Numbers for the second dimension of a weight of `shape`, where the first is cut in groups that each have their own."""
    rows = numbers.reshape(groups, 1, shape[1]).expand(groups, shape[0] // groups, shape[1])
    return rows.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
