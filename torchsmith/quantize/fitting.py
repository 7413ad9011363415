"""Whether a calibration that comes from a file is one of a placement: every name there, every list as long as it must be."""

from __future__ import annotations

from collections.abc import Iterator

from torchsmith.errors import InvalidInput
from torchsmith.quantize.calibration import Calibration
from torchsmith.quantize.placement import Placement, name_of_point


def fitting(calibration: Calibration, placement: Placement, file: str) -> Calibration:
    """The calibration. Raises InvalidInput where the file lacks a value, as after a change of skip_layers, or was edited amiss."""
    if missing := [point.name for point in placement.points if point.name not in calibration.ranges]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InvalidInput(
            f"{file} has no range for {missing[0]}{more}; skip_layers or enabled_precisions may have changed: calibrate again"
        )
    if misfit := next(_misfits(calibration, placement), None):
        raise InvalidInput(f"{file} is damaged: {misfit}; calibrate again")
    return calibration


def _misfits(calibration: Calibration, placement: Placement) -> Iterator[str]:
    """Sentences on what has another size than the program's."""
    for layer in placement.layers:
        weight, x = layer.weight.meta["val"], layer.x.meta["val"]
        correction = calibration.corrections.get(layer.name)
        if correction is not None and len(correction) != weight.shape[layer.axis]:
            yield f"{len(correction)} corrections for the {weight.shape[layer.axis]} channels of {layer.name}"
        rounding = calibration.roundings.get(layer.weight.name)
        if rounding is not None and rounding.shape != tuple(weight.shape):
            yield f"roundings of {rounding.shape} for the weight of {layer.name}, which is {tuple(weight.shape)}"
        shares = calibration.shares.get(name_of_point(layer.x, layer.dtype))
        if shares is not None and len(shares) != x.shape[-1]:
            yield f"{len(shares)} shares for the {x.shape[-1]} channels of {layer.x.name}"
