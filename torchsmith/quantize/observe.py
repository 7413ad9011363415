"""Running a program over calibration data, and looking at values on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from torchsmith.capture.source import source_line
from torchsmith.errors import InvalidInput
from torchsmith.quantize.batches import Batch
from torchsmith.quantize.placement import Placement, Point
from torchsmith.quantize.statistics import Statistics
from torchsmith.quantize.weighted import Layer, name_of

# What is done with a node's value, besides the values of its inputs.
Look = Callable[[fx.Node, Any, Mapping[fx.Node, Any]], None]


class Observed(fx.Interpreter):
    """A program as a function of its user inputs, in the dtypes that it was captured with; `look` sees every node's value."""

    def __init__(self, program: ExportedProgram, look: Look) -> None:
        super().__init__(program.graph_module, graph=program.graph)
        self.program, self.look, self.batch = program, look, 0
        self.extra_traceback = False  # which would be added to our own sentences

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, IndexError, ValueError) as error:  # what PyTorch raises for inputs that an op does not take
            where = f" ({line})" if (line := source_line(n)) else ""
            raise InvalidInput(f"calibration batch {self.batch} fails in {name_of(n)}{where}: {error}") from error
        self.look(n, value, self.env)
        return value

    def over(self, batch: Batch) -> None:
        """One call. The program's buffers are left as they are. Raises InvalidInput where an op does not take what it gets."""
        self.batch = batch.number
        given = iter(batch.inputs)
        values = [
            next(given) if spec.kind is InputKind.USER_INPUT else self._stored(spec.target)
            for spec in self.program.graph_signature.input_specs
        ]
        with torch.no_grad():
            self.run(*values, enable_io_processing=False)

    def _stored(self, name: str | None) -> Any:
        assert name is not None, "the program takes a token"
        value = self.program.state_dict.get(name)
        value = self.program.constants[name] if value is None else value
        written = self.program.graph_signature.buffers_to_mutate.values()
        return value.clone() if name in written else value


class Ranges:
    """Statistics of the values that a placement quantizes. Raises InvalidInput, naming batch and layer, where one is not finite."""

    def __init__(self, placement: Placement, shares: Mapping[str, tuple[float, ...]]) -> None:
        self.shares = shares
        self.points: dict[fx.Node, list[Point]] = {}
        for point in placement.points:
            self.points.setdefault(point.node, []).append(point)
        self.statistics = [Statistics() for _ in range(len({p.group for p in placement.points}))]
        self.own: dict[str, Statistics] = {}  # of points, by their names
        self.batch = 0

    def look(self, node: fx.Node, value: Any, env: Mapping[fx.Node, Any]) -> None:
        for point in self.points.get(node, ()):
            self._look(point, value)

    def _look(self, point: Point, value: Any) -> None:
        if point.name in self.shares:
            value = value / torch.tensor(self.shares[point.name], dtype=value.dtype, device=value.device)
        seen = Statistics.of(value)
        if not seen.is_finite:
            raise InvalidInput(
                f"calibration batch {self.batch} makes {point.name} infinite or NaN; "
                "see whether the model computes it in PyTorch too, and leave such inputs out"
            )
        self.statistics[point.group] = self.statistics[point.group].merged(seen)
        self.own[point.name] = self.own.get(point.name, Statistics()).merged(seen)


class Errors:
    """Per output channel, the mean of what quantization changes in each layer, given the layer's own inputs.

    arguments: for every layer the functions that quantize its input and its weight.
    """

    def __init__(self, layers: Sequence[Layer], arguments: Mapping[fx.Node, tuple[Callable[[Tensor], Tensor], Tensor]]) -> None:
        self.layers = {layer.node: layer for layer in layers}
        self.arguments = arguments
        self.means: dict[fx.Node, list[Tensor]] = {}

    def look(self, node: fx.Node, value: Any, env: Mapping[fx.Node, Any]) -> None:
        if (layer := self.layers.get(node)) is None:
            return
        quantize, weight = self.arguments[node]
        known = {layer.x: quantize(env[layer.x]), layer.weight: weight}
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known.get(n, env[n]))
        error = (value - node.target(*args, **kwargs)).double()  # type: ignore[operator]
        channels = channel_axis(node) % error.dim()
        means = error.movedim(channels, -1).flatten(0, -2).mean(0) if error.dim() > 1 else error
        self.means.setdefault(node, []).append(means)

    def corrections(self) -> dict[str, tuple[float, ...]]:
        """What to add to each layer's bias, by the layers' names."""
        return {self.layers[node].name: tuple(torch.stack(means).mean(0).tolist()) for node, means in self.means.items()}


def channel_axis(node: fx.Node) -> int:
    """The dimension of a layer's output that has its channels: before the spatial ones for convolutions, else the last."""
    weight = node.args[1].meta["val"]  # type: ignore[union-attr]
    return 1 - weight.dim() if "conv" in str(node.target) else -1
