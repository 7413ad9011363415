"""A program run as if some of its layers computed in lower precision: rounding on the way, in the program's own dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from torchsmith.convert import Converter, parameters_of, probe
from torchsmith.errors import Unsupported
from torchsmith.ops.attention import Attention
from torchsmith.ops.quantize import FP8
from torchsmith.quantize.batches import Batch
from torchsmith.quantize.calibration import Calibration
from torchsmith.quantize.insert import corrected_bias, grid_of, rounded_weight
from torchsmith.quantize.observe import channel_axis
from torchsmith.quantize.placement import Placement
from torchsmith.quantize.policy import role_of
from torchsmith.quantize.weighted import Layer

Round = Callable[[Tensor], Tensor]
Kind = Literal["matrix", "follow", "wide"]


@dataclass(frozen=True)
class Rounding:
    """What is rounded. inputs: by the node that takes a value, and the node that gives it. outputs: by the node that gives it.

    instead: what is called in the place of a node that rounds inside.
    """

    inputs: Mapping[tuple[fx.Node, fx.Node], Round] = field(default_factory=dict)
    outputs: Mapping[fx.Node, Round] = field(default_factory=dict)
    instead: Mapping[fx.Node, Callable[..., Tensor]] = field(default_factory=dict)

    def nodes(self) -> set[fx.Node]:
        """The nodes that give something else than without."""
        return {taker for taker, _ in self.inputs} | set(self.outputs) | set(self.instead)


class Simulation(fx.Interpreter):
    """Runs a program with some rounding, from its beginning or from any node on."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.graph_module, graph=program.graph)
        self.program = program
        self.nodes: list[fx.Node] = list(program.graph.nodes)
        self.index = {node: number for number, node in enumerate(self.nodes)}
        self.last = {node: max((self.index[user] for user in node.users), default=-1) for node in self.nodes}
        specs = program.graph_signature.output_specs
        self.given = [number for number, spec in enumerate(specs) if spec.kind is OutputKind.USER_OUTPUT]
        self.rounding = Rounding()

    def begin(self, batch: Batch) -> dict[fx.Node, Any]:
        """The values of the program's placeholders for one call."""
        given = iter(batch.inputs)
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        specs = self.program.graph_signature.input_specs
        return {
            node: next(given) if spec.kind is InputKind.USER_INPUT else self._stored(spec.target)
            for node, spec in zip(placeholders, specs, strict=True)
        }

    def _stored(self, name: str | None) -> Any:
        assert name is not None, "the program takes a token"
        value = self.program.state_dict.get(name)
        return self.program.constants[name] if value is None else value

    def step(self, number: int) -> Any:
        """Run one node, and let go of what nobody takes after it. Gives its value."""
        node = self.nodes[number]
        if node.op == "placeholder":
            return self.env[node]
        if (instead := self.rounding.instead.get(node)) is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            value: Any = instead(*args, **kwargs)
        else:
            value = self.run_node(node)
        if (rounded := self.rounding.outputs.get(node)) is not None:
            value = rounded(value)
        self.env[node] = value
        for source in node.all_input_nodes:
            if self.last[source] == number:
                del self.env[source]
        return value

    def rest(self, env: Mapping[fx.Node, Any], number: int, rounding: Rounding) -> list[Any]:
        """The user's outputs, from the node of that number on. env: all values that it and later ones take; it stays as it is."""
        outer = self.env, self.rounding
        self.env, self.rounding = dict(env), rounding
        try:
            with torch.no_grad():
                for index in range(number, len(self.nodes) - 1):
                    self.step(index)
                outputs = self.run_node(self.nodes[-1])
        finally:
            self.env, self.rounding = outer
        return [outputs[index] for index in self.given]

    def outputs(self, batch: Batch, rounding: Rounding | None = None) -> list[Any]:
        """The user's outputs of one call, flat."""
        return self.rest(self.begin(batch), 0, rounding or Rounding())

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def value(source: fx.Node) -> Any:
            rounded = self.rounding.inputs.get((n, source))
            return self.env[source] if rounded is None else rounded(self.env[source])

        args, kwargs = fx.node.map_arg((n.args, dict(n.kwargs)), value)
        return args, kwargs


def kinds_of(program: ExportedProgram) -> dict[fx.Node, Kind]:
    """How the precision policy sees every node that can be in an engine; those that give no float32 are left out."""
    converter, found = Converter(program), dict[fx.Node, Kind]()
    for node in program.graph.nodes:
        if node.op != "call_function" or getattr(node.meta.get("val"), "dtype", None) != torch.float32:
            continue
        try:
            roles = {role_of(made) for made in probe(converter, node).nodes}
        except Unsupported:
            continue
        found[node] = "matrix" if "matrix" in roles else "wide" if "wide" in roles else "follow"
    return found


def float_rounding(node: fx.Node, dtype: torch.dtype) -> Rounding:
    """One node that computes in a smaller float."""
    sources = {source for source in node.all_input_nodes if _is_float32(source)}
    return Rounding({(node, source): Float(dtype) for source in sources}, {node: Float(dtype)})


def eight_bit_rounding(program: ExportedProgram, placement: Placement, calibration: Calibration) -> Rounding:
    """What `insert` and `correct_biases` would do, with the ranges of `placed_ranges`."""
    tensors = parameters_of(program)
    inputs: dict[tuple[fx.Node, fx.Node], Round] = {}
    outputs: dict[fx.Node, Round] = {}
    for point in placement.points:
        for user in point.users:
            inputs[user, point.node] = grid_of(point, calibration)
    for layer in placement.layers:
        inputs[layer.node, layer.weight] = Weight(layer, calibration)
        if (found := corrected_bias(layer, tensors, calibration)) is not None:
            outputs[layer.node] = Shift(found.added, channel_axis(layer.node))
    return Rounding(inputs, outputs, dict.fromkeys(placement.attentions, attention_of_fp8))


def attention_of_fp8(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """aten.scaled_dot_product_attention whose probabilities are rounded to fp8, in inference."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    op = Attention(query.shape[-1] ** -0.5 if scale is None else scale, is_causal, FP8)
    return op.reference(query, key, value, mask)


def joint_rounding(
    program: ExportedProgram,
    eight: Rounding,
    floats: Mapping[fx.Node, torch.dtype],
    rest: torch.dtype,
    kinds: Mapping[fx.Node, Kind],
) -> Rounding:
    """The whole program as `reduce_precision` has it. eight: what `eight_bit_rounding` gives. floats: what matrix work computes in
    where that is not `rest`.
    """
    inputs, outputs = dict(eight.inputs), dict(eight.outputs)
    dtypes: dict[fx.Node, torch.dtype] = {}
    for node in program.graph.nodes:
        dtype = _dtype(node, floats.get(node, rest), kinds, dtypes)
        if dtype == torch.float32:
            continue
        dtypes[node] = dtype
        for source in node.all_input_nodes:
            if _is_float32(source):
                inputs[node, source] = _then(inputs.get((node, source)), Float(dtype))
        outputs[node] = _then(outputs.get(node), Float(dtype))
    return Rounding(inputs, outputs, eight.instead)


def _dtype(node: fx.Node, own: torch.dtype, kinds: Mapping[fx.Node, Kind], dtypes: Mapping[fx.Node, torch.dtype]) -> torch.dtype:
    kind = kinds.get(node, "wide")
    if kind == "matrix":
        return own
    reaching = {dtypes[source] for source in node.all_input_nodes if source in dtypes} if kind == "follow" else set()
    return reaching.pop() if len(reaching) == 1 else torch.float32


def _is_float32(node: fx.Node) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) == torch.float32


def _then(first: Round | None, second: Round) -> Round:
    return second if first is None else Chain((first, second))


@dataclass(frozen=True)
class Chain:
    parts: Sequence[Round]

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@dataclass(frozen=True)
class Float:
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)


@dataclass
class Weight:
    """A layer's weight in eight bits, computed once."""

    layer: Layer
    calibration: Calibration
    _rounded: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._rounded is None:
            self._rounded = rounded_weight(x, self.layer, self.calibration)
        return self._rounded


@dataclass(frozen=True, eq=False)
class Shift:
    """A correction added to each channel."""

    added: Tensor
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return x + self.added.to(x.dtype).reshape(shape)
