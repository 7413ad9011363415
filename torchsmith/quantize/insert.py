"""Calibrated ranges as fake-quantize ops in a program, and means of errors as biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.errors import InvalidInput
from torchsmith.lower.editing import argument, call, lift, set_argument
from torchsmith.ops.quantize import FP8
from torchsmith.quantize.calibration import Calibration, Range
from torchsmith.quantize.formats import FORMATS
from torchsmith.quantize.placement import Placement, Point, name_of_point
from torchsmith.quantize.weighted import Layer

aten = torch.ops.aten

# Smaller steps have no finite inverse in float32, which fake-quantize multiplies by.
_LEAST_STEP = 2.0**-120


@dataclass(frozen=True)
class Grid:
    """The numbers an activation can take: step times whole numbers from least to greatest, times each channel's share.

    shares: by the last dimension; None where all are 1.
    """

    step: float
    least: int
    greatest: int
    shares: tuple[float, ...] | None = None

    @staticmethod
    def of(range: Range, shares: tuple[float, ...] | None = None) -> Grid:
        """127 steps up to the threshold and 128 down, or 255 up where nothing is negative."""
        least, greatest = (-128, 127) if range.is_signed else (0, 255)
        step = range.threshold / greatest if range.threshold > 0 else 1.0
        return Grid(max(step, _LEAST_STEP), least, greatest, shares)

    def __call__(self, x: Tensor) -> Tensor:
        # a quarter of the time that torch.fake_quantize_per_tensor_affine takes, which also makes a mask for gradients
        if self.shares is not None:
            shares = torch.tensor(self.shares, dtype=x.dtype, device=x.device)
            return Grid(self.step, self.least, self.greatest)(x * (1 / shares)) * shares
        return (x * (1 / self.step)).round_().clamp_(self.least, self.greatest).mul_(self.step)


@dataclass(frozen=True)
class FloatGrid:
    """The numbers that an activation can take in fp8: step times those of float8_e4m3fn."""

    step: float

    @staticmethod
    def of(range: Range) -> FloatGrid:
        """The threshold is the greatest of them."""
        return FloatGrid(max(range.threshold / FORMATS[FP8].greatest, _LEAST_STEP) if range.threshold > 0 else 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.torchsmith.fake_quantize_float8(x, torch.tensor(self.step, device=x.device))
        return y


def with_ranges(placement: Placement, calibration: Calibration) -> Calibration:
    """The calibration with ranges for a placement of fewer layers than it was made for.

    There a value may be quantized behind ops that commute with rounding, and not before them: the range is the same.
    """
    found = dict(calibration.ranges)
    for point in placement.points:
        source, name = point.node, point.name
        while name not in calibration.ranges:
            source = source.all_input_nodes[0]
            name = name_of_point(source, point.dtype)
        found[point.name] = calibration.ranges[name]
    return replace(calibration, ranges=found)


def insert(program: ExportedProgram, placement: Placement, calibration: Calibration) -> None:
    """Give the users of every point its fake-quantized value, and every layer its fake-quantized weight."""
    for point in placement.points:
        _insert_activation(program, point, grid_of(point, calibration))
    tensors = parameters_of(program)
    made: dict[tuple[fx.Node, int, torch.dtype], fx.Node] = {}
    for layer in placement.layers:
        key = layer.weight, layer.axis, layer.dtype
        if key not in made:
            made[key] = _insert_weight(program, layer, tensors[layer.weight.name], calibration)
        layer.node.replace_input_with(layer.weight, made[key])


def grid_of(point: Point, calibration: Calibration) -> Grid | FloatGrid:
    if point.dtype == FP8:
        return FloatGrid.of(calibration.ranges[point.name])
    return Grid.of(calibration.ranges[point.name], calibration.shares.get(point.name))


def _insert_activation(program: ExportedProgram, point: Point, grid: Grid | FloatGrid) -> None:
    users = point.users
    (first,) = (node for node in point.node.graph.nodes if node in users and node is users[0])
    given = point.node
    if isinstance(grid, FloatGrid):
        scale = lift(program, torch.tensor(grid.step, device=given.meta["val"].device), "c_scale")
        new = call(first, torch.ops.torchsmith.fake_quantize_float8.default, given, scale)
        for user in users:
            user.replace_input_with(point.node, new)
        return
    if grid.shares is not None:
        val = given.meta["val"]
        inverse = 1 / torch.tensor(grid.shares, dtype=torch.float64)
        given = call(first, aten.mul.Tensor, given, lift(program, inverse.to(val.dtype).to(val.device), "c_shares"))
    new = call(first, aten.fake_quantize_per_tensor_affine.default, given, grid.step, 0, grid.least, grid.greatest)
    for user in users:
        user.replace_input_with(point.node, new)


def _insert_weight(program: ExportedProgram, layer: Layer, weight: Tensor, calibration: Calibration) -> fx.Node:
    steps = weight_steps(weight, layer, calibration)
    scale = lift(program, steps, "c_scale")
    given = layer.weight
    if layer.weight.name in calibration.roundings or shares_of(layer, weight, calibration) is not None:
        given = _replaced(program, layer, _on_grid(weight, layer, calibration))
    if layer.dtype == FP8:
        return call(layer.node, torch.ops.torchsmith.fake_quantize_float8.default, given, scale, layer.axis)
    zero_point = lift(program, torch.zeros_like(steps, dtype=torch.int32), "c_zero_point")
    greatest = FORMATS[torch.int8].greatest
    return call(
        layer.node, aten.fake_quantize_per_channel_affine.default, given, scale, zero_point, layer.axis, -greatest, greatest
    )


def _replaced(program: ExportedProgram, layer: Layer, tensor: Tensor) -> fx.Node:
    """The tensor in the place of the layer's weight; beside it, where others take that."""
    (spec,) = (spec for spec in program.graph_signature.input_specs if spec.arg.name == layer.weight.name)
    stored = program.state_dict if spec.target in program.state_dict else program.constants
    if set(layer.weight.users) != {layer.node} or spec.target not in stored:
        return lift(program, tensor, "c_weight")
    stored[spec.target] = torch.nn.Parameter(tensor, False) if isinstance(stored[spec.target], torch.nn.Parameter) else tensor
    return layer.weight


def shares_of(layer: Layer, weight: Tensor, calibration: Calibration) -> Tensor | None:
    """What the layer's inputs are divided by and its weight is multiplied by, shaped to be broadcast; None where that is 1."""
    shares = calibration.shares.get(name_of_point(layer.x, layer.dtype))
    if shares is None:
        return None
    return torch.tensor(shares, device=weight.device).reshape([1 if dim == layer.axis else -1 for dim in range(weight.dim())])


def weight_steps(weight: Tensor, layer: Layer, calibration: Calibration) -> Tensor:
    """The step of each output channel: float32, (channels,). Raises InvalidInput for a weight that is not finite."""
    shares = shares_of(layer, weight, calibration)
    given = weight.detach().float() if shares is None else weight.detach().float() * shares
    greatest = given.movedim(layer.axis, 0).flatten(1).abs().amax(1)
    if not bool(torch.isfinite(greatest).all()):
        raise InvalidInput(f"the weight of {layer.name} has NaN or infinite numbers; eight bits need finite ones")
    return torch.where(greatest > 0, greatest / FORMATS[layer.dtype].greatest, 1.0).clamp(min=_LEAST_STEP)


def rounded_weight(weight: Tensor, layer: Layer, calibration: Calibration) -> Tensor:
    """What the layer's numbers of eight bits stand for, in the weight's shape and dtype. Raises InvalidInput as `weight_steps`."""
    shares, made = shares_of(layer, weight, calibration), _on_grid(weight, layer, calibration)
    return made if shares is None else (made / shares).to(weight.dtype)


def _on_grid(weight: Tensor, layer: Layer, calibration: Calibration) -> Tensor:
    """Steps times numbers of eight bits: the rounded weight, times its inputs' shares."""
    format = FORMATS[layer.dtype]
    steps, shares = weight_steps(weight, layer, calibration), shares_of(layer, weight, calibration)
    steps = steps.reshape([-1 if dim == layer.axis else 1 for dim in range(weight.dim())])
    given = weight.detach().float() if shares is None else weight.detach().float() * shares
    numbers = format.nearest(given * (1 / steps))
    if (offsets := calibration.roundings.get(layer.weight.name)) is not None:
        numbers = (numbers + offsets.tensor().to(weight.device)).clamp_(-format.greatest, format.greatest)
    return (numbers * steps).to(weight.dtype)


def quantized_layers(
    program: ExportedProgram, placement: Placement, calibration: Calibration
) -> dict[fx.Node, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """For every layer, what rounds its input, and its rounded weight.

    An input that was moved up through commuting ops is rounded by the grid of where it comes from.
    """
    tensors = parameters_of(program)
    found: dict[fx.Node, tuple[Callable[[Tensor], Tensor], Tensor]] = {}
    for layer in placement.layers:
        weight = tensors[layer.weight.name].detach()
        found[layer.node] = _grid_of_input(layer, placement, calibration), rounded_weight(weight, layer, calibration)
    return found


def _grid_of_input(layer: Layer, placement: Placement, calibration: Calibration) -> Grid | FloatGrid:
    points = {(point.node, user): point for point in placement.points for user in point.users}
    value, user = layer.x, layer.node
    while (value, user) not in points:
        value, user = value.all_input_nodes[0], value
    return grid_of(points[value, user], calibration)


def correct_biases(program: ExportedProgram, placement: Placement, calibration: Calibration) -> None:
    """Add to each layer's bias what quantization takes off the mean of its outputs. Source: M. Nagel et al., "Data-free
    quantization through weight equalization and bias correction", 2019; here the means are measured.
    """
    tensors = parameters_of(program)
    for layer in placement.layers:
        if (found := corrected_bias(layer, tensors, calibration)) is not None:
            dtype = tensors[layer.weight.name].dtype
            set_argument(layer.node, found.argument, lift(program, (found.old + found.added).to(dtype), "c_bias"))


@dataclass(frozen=True, eq=False)
class CorrectedBias:
    """A layer's bias, by the name of its argument, and what is added to it: float64, (channels,)."""

    argument: str
    old: Tensor
    added: Tensor


def corrected_bias(layer: Layer, tensors: Mapping[str, Tensor], calibration: Calibration) -> CorrectedBias | None:
    """None where nothing was measured, or the layer has no constant bias to add it to. tensors: the program's parameters."""
    correction = calibration.corrections.get(layer.name)
    if correction is None or not (name := _bias_name(layer.node)):
        return None
    bias = argument(layer.node, name)
    if bias is not None and (not isinstance(bias, fx.Node) or bias.name not in tensors):
        return None
    added = torch.tensor(correction, dtype=torch.float64, device=tensors[layer.weight.name].device)
    old = torch.zeros_like(added) if bias is None else tensors[bias.name].detach().double()
    return CorrectedBias(name, old, added) if old.shape == added.shape else None


def _bias_name(node: fx.Node) -> str | None:
    """The argument that is added to each channel; None for products, which have none."""
    if node.target is aten.addmm.default:
        return "self" if argument(node, "beta") == 1 else None
    return "bias" if any(a.name == "bias" for a in node.target._schema.arguments) else None  # type: ignore[union-attr]
