"""Weights that training has rounded to integers times a step: scaling their channels scales the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.lower.editing import argument, call, lift

aten = torch.ops.aten
_PER_TENSOR = {aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams}
_PER_CHANNEL = aten.fake_quantize_per_channel_affine.default


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant under a fake-quantize op. weight: (channels, ...). step, zero_point: one for all, or one a channel."""

    weight: Tensor
    step: Tensor
    zero_point: Tensor
    low: int
    high: int

    def integers(self) -> Tensor:
        """The whole numbers that the weight is rounded to, without the zero point; float32."""
        point = _along(self.zero_point, self.weight)
        rounded = torch.round(self.weight.float() * _along(1.0 / self.step, self.weight)) + point
        return torch.clamp(rounded, self.low, self.high) - point

    def scaled(self, scale: Tensor) -> QuantizedWeight | None:
        """The same integers with steps times `scale`, (channels,) in float64; with other signs where it is negative.

        None where they would not be the same integers: a step overflows, or an integer has no negative in the range.
        """
        channels = self.weight.shape[0]
        step, point = self.step.double().expand(channels), self.zero_point.expand(channels).contiguous()
        new_step = torch.where(scale == 0, step, step * scale.abs()).float()
        integers = self.integers() * _along(torch.sign(scale).float(), self.weight)
        weight = (integers.double() * _along(new_step.double(), self.weight)).to(self.weight.dtype)
        found = QuantizedWeight(weight, new_step, point, self.low, self.high)
        usable = torch.isfinite(weight).all() & torch.isfinite(1.0 / new_step).all() & (new_step > 0).all()
        return found if bool(usable) and torch.equal(found.integers(), integers) else None


def quantized_weight(node: fx.Node, tensors: dict[str, Tensor]) -> QuantizedWeight | None:
    """Read a node as a fake-quantized constant whose channels are its first dimension; None where it is something else."""
    if node.target not in _PER_TENSOR and (node.target is not _PER_CHANNEL or argument(node, "axis") != 0):
        return None
    weight, step, point = (_known(argument(node, name), tensors) for name in ("self", "scale", "zero_point"))
    if weight is None or step is None or point is None or not weight.dim():
        return None
    step, point = (numbers.detach().to(weight.device).reshape(-1) for numbers in (step.float(), point))
    return QuantizedWeight(weight.detach(), step, point, argument(node, "quant_min"), argument(node, "quant_max"))


def placed(program: ExportedProgram, like: fx.Node, weight: QuantizedWeight) -> fx.Node:
    """A fake-quantize op of the weight, before `like`."""
    names = (weight.weight, "c_weight"), (weight.step, "c_scale"), (weight.zero_point.to(torch.int32), "c_zero_point")
    return call(like, _PER_CHANNEL, *(lift(program, tensor, name) for tensor, name in names), 0, weight.low, weight.high)


def _known(value: object, tensors: dict[str, Tensor]) -> Tensor | None:
    if isinstance(value, fx.Node):
        return tensors.get(value.name)
    return torch.tensor(value) if isinstance(value, (int, float)) else None


def _along(numbers: Tensor, weight: Tensor) -> Tensor:
    return numbers.reshape(-1, *[1] * (weight.dim() - 1))
