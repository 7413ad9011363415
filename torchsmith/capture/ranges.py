"""Quantization-aware training's modules for export, and what is wrong with the ranges that training left.

torch.ao's FakeQuantize modules look at their switches as they run, which cannot be exported: while a model is traced, each is
replaced by the op that it ends in. Ranges are taken as they are; observers do not go on observing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from torchsmith.capture.source import layer, source_line
from torchsmith.errors import CaptureError
from torchsmith.ops.quantize import teach_shapes

# Ops that have a scale, by the beginnings of their names, and what they call it. ModelOpt's amax is a scale's multiple.
_QUANTIZE = ("fake_quantize", "quantize_per_", "dequantize_per_", "quantize_op", "quantize_affine", "dequantize_affine")
_SCALES = ("scale", "scales", "amax")
_TO_DO = "train it on, or calibrate it, before compiling"


class FixedRange(nn.Module):
    """x rounded to the numbers that a range has: a FakeQuantize in inference. Source: aten.fake_quantize_per_*_affine."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.axis, self.low, self.high = axis, low, high

    def forward(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, self.low, self.high)


@contextmanager
def fixed_ranges(module: nn.Module) -> Iterator[nn.Module]:
    """The module with every FakeQuantize in it replaced, until the end of the `with`. Raises CaptureError for unusable ranges."""
    teach_shapes()
    if _is_fake_quantizer(module):
        yield _fixed(module, "the model")
        return
    made: dict[nn.Module, nn.Module] = {}
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, owner in list(module.named_modules()):
            for name, child in list(owner._modules.items()):
                if child is not None and _is_fake_quantizer(child) and not isinstance(owner, torch.jit.ScriptModule):
                    if child not in made:
                        made[child] = _fixed(child, f"{path}.{name}".removeprefix("."))
                    replaced.append((owner, name, child))
                    owner._modules[name] = made[child]
        yield module
    finally:
        for owner, name, child in replaced:
            owner._modules[name] = child


def _is_fake_quantizer(module: nn.Module) -> bool:
    # by name: torch.ao and torchao have one each, and neither is imported for the question's sake
    return any(kind.__name__ == "FakeQuantizeBase" for kind in type(module).__mro__)


def _fixed(module: Any, path: str) -> nn.Module:
    """What a FakeQuantize does in inference."""
    if not bool(module.fake_quant_enabled[0]):
        return nn.Identity()
    scale, point = module.scale.detach(), module.zero_point.detach()
    observer = getattr(module, "activation_post_process", None)
    if _never_observed(observer) and bool((scale == 1).all()):
        raise CaptureError(f"{path} is a {type(module).__name__} that never observed anything, so it has no range; {_TO_DO}")
    if bool(getattr(module, "symmetric", False)):
        point = torch.zeros_like(point)
    low, high = (int(getattr(observer, name, getattr(module, name, 0))) for name in ("quant_min", "quant_max"))
    if reason := _misfit(scale, point, low, high):
        raise CaptureError(f"{path} has {reason}; {_TO_DO}")
    channels = module.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
    return FixedRange(scale, _as_op_takes(point, channels), int(module.ch_axis) if channels else None, low, high)


def _as_op_takes(zero_point: Tensor, channels: bool) -> Tensor:
    """Whole zero points as int32; those of learnable ranges are floats, which the op would not round."""
    is_whole = bool((zero_point == zero_point.round()).all())
    return zero_point.to(torch.int32) if is_whole or not channels else zero_point


def _never_observed(observer: Any) -> bool:
    low, high = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    if not isinstance(low, Tensor) or not isinstance(high, Tensor):
        return False
    return low.numel() == 0 or bool((low > high).all())


def _misfit(scale: Tensor, zero_point: Tensor, low: int, high: int) -> str | None:
    """What makes a range unusable, in words; None where it is fine."""
    scale, zero_point = scale.reshape(-1), zero_point.reshape(-1)
    for wrong, what in (
        (~torch.isfinite(scale), "and a scale is a finite number"),
        (scale <= 0, "and a scale is positive"),
        (~torch.isfinite(1 / scale.float()), "whose reciprocal float32 cannot hold"),
    ):
        if bool(wrong.any()):
            channel = int(wrong.nonzero()[0])
            return f"the scale {scale[channel].item():g}{_of(channel, scale)}, {what}"
    outside = (zero_point < low) | (zero_point > high)
    if bool(outside.any()):
        channel = int(outside.nonzero()[0])
        return f"the zero point {zero_point[channel].item():g}{_of(channel, zero_point)}, which lies outside {low}..{high}"
    return None


def _of(channel: int, numbers: Tensor) -> str:
    return f" in channel {channel}" if numbers.numel() > 1 else ""


def check_ranges(program: ExportedProgram) -> None:
    """Raise CaptureError where a quantize op of the program has an unusable scale or zero point."""
    tensors = {
        spec.arg.name: program.constants.get(spec.target, program.state_dict.get(spec.target))
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    }
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.name.partition("::")[2].startswith(_QUANTIZE):
            continue
        names = [a.name for a in schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if given.get("amax", 0) is None:  # ModelOpt's: the scale is 1
            continue
        scale = _tensor(next((given[name] for name in _SCALES if name in given), 1.0), tensors)
        point = _tensor(given.get("zero_point", given.get("zero_points")), tensors)
        low, high = (given.get(name) for name in ("quant_min", "quant_max"))
        if scale is None or point is None:
            continue
        if reason := _misfit(scale, point, *(limit if isinstance(limit, int) else 0 for limit in (low, high))):
            where = ", ".join(place for place in (layer(node), source_line(node)) if place)
            raise CaptureError(f"{node.target}{f' ({where})' if where else ''} has {reason}; {_TO_DO}")


def _tensor(number: Any, tensors: dict[str, Any]) -> Tensor | None:
    if isinstance(number, (int, float)):
        return torch.tensor(number, dtype=torch.float64)
    if number is None:
        return torch.zeros(())
    found = tensors.get(number.name) if isinstance(number, fx.Node) else None
    return found if isinstance(found, Tensor) else None
