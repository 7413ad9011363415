"""Where int8 and fp8 go: which layers compute in them, and which of the program's values are therefore quantized.

Matrix layers (convolution, linear, products with constant weights) take int8, and so does the sum of two branches whose result
flows into one, with its branches; on engines whose kernels add as they go, without the one that is added up so. A quantized value
is moved up through ops that commute with rounding (max pooling, reshapes, concatenation), so that int8 flows between layers; not
through ReLU, behind which numbers are never negative and get 8 bits of magnitude.

What stays higher: convolutions on pixels (but for those of large kernels, on engines that gain by them), the gates of
squeeze-and-excite (small layers on pooled data that scale whole channels), attention's products of activations, depthwise
convolutions of what a layer that stays higher gives, what engines have no int8 kernel for, and what `skip_layers` names. Last
layers and other depthwise convolutions are quantized.

fp8 goes to linear layers, products with constant weights and attention, where it is enabled; int8 then goes to convolutions, and
elsewhere to all of these. fp8 keeps three bits of mantissa whatever the magnitude, so that a few large channels cost nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.node import Argument

from torchsmith.lower.editing import argument, same_shape
from torchsmith.ops.quantize import FP8
from torchsmith.quantize.abilities import ALL, Int8Abilities
from torchsmith.quantize.gates import gates_of, scaled_by_gate
from torchsmith.quantize.skipping import skipped_nodes
from torchsmith.quantize.weighted import (
    COMMUTING,
    CONVOLUTIONS,
    POINTWISE,
    POOLING,
    PRODUCTS,
    Layer,
    layer_of,
    name_of,
    product_of,
    weighted,
    weights_of,
)

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
_SUMS = {aten.add.Tensor}
_CONCATENATIONS = {aten.cat.default, aten.concat.default, aten.concatenate.default}
# What takes so few channels takes pixels. Rounding them costs accuracy (a sixth of the whole error on EfficientNet-Lite0's real
# weights, by that one layer), and so little is summed up for a result that int8 gains next to nothing.
_PIXEL_CHANNELS = 4
# What sums up more of them than small kernels do gains twice its time, and pixels have no more than eight bits themselves.
_PIXEL_TERMS = 100
_PADS = {aten.pad.default, aten.constant_pad_nd.default}
# Layers that compute in fp8 where that is enabled.
_LINEAR = {aten.linear.default, aten.addmm.default, *PRODUCTS}
# A value that is int8 for another layer is int8 for these too.
_FOLLOWING = {
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.mean.dim,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A value that is quantized to `dtype` for some of its users. group: points of one number share a scale, as they are
    concatenated. name: of the value, and of what it is quantized to where that is not int8.
    """

    node: fx.Node
    name: str
    users: tuple[fx.Node, ...]
    group: int
    dtype: torch.dtype = torch.int8


@dataclass(frozen=True)
class Placement:
    """attentions: nodes that compute in fp8, and have no weight. kept: by the names of nodes, why others with a constant weight
    are no layers. int8: what it goes by.
    """

    layers: tuple[Layer, ...]
    points: tuple[Point, ...]
    attentions: tuple[fx.Node, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    int8: Int8Abilities = ALL

    def dtypes(self) -> dict[fx.Node, torch.dtype]:
        """What every layer and attention is quantized to."""
        return {layer.node: layer.dtype for layer in self.layers} | dict.fromkeys(self.attentions, FP8)


def place(
    program: ExportedProgram,
    skip_layers: Collection[str] = (),
    *,
    int8: Int8Abilities = ALL,
    formats: Collection[torch.dtype] = (torch.int8,),
) -> Placement:
    """Choose layers and values of a lowered program. skip_layers: module paths, or patterns such as "blocks.0.*", kept as they are.

    int8: what engines do of it. formats: what is enabled of int8 and float8_e4m3fn.

    Raises InvalidOption for an entry of `skip_layers` that names nothing.
    """
    weights = weights_of(program)
    skipped = skipped_nodes(program, skip_layers)
    gates = gates_of(program, weights)
    layers: list[Layer] = []
    scaled: dict[fx.Node, set[fx.Node]] = {}
    kept: dict[str, str] = {}
    for node, made in weighted(program).items():
        if node in skipped:
            kept[node.name] = "skip_layers names it"
        elif node in gates:
            kept[node.name] = "it makes a gate, which scales whole channels"
        elif FP8 in formats and node.target in _LINEAR:
            layers.append(replace(made, dtype=FP8))
        elif torch.int8 not in formats:
            kept[node.name] = "fp8 is for linear layers and attention, and int8 is not enabled"
        elif not int8.gated and (wide := scaled_by_gate(made)) is not None:
            scaled.setdefault(wide, set()).add(made.x)
            kept[node.name] = "it takes what a gate scales, which these engines do as the layer loads"
        elif _takes_pixels(made) and not (int8.pixels and made.terms >= _PIXEL_TERMS):
            channels = made.weight.meta["val"].shape[1]
            kept[node.name] = f"it takes {channels} channels, as of pixels; int8 costs much there and gains little"
        elif why := int8.in_floats(product_of(node)):
            kept[node.name] = why
        elif _is_depthwise_on_floats(made, {other.node for other in layers}, weights):
            kept[node.name] = "a depthwise convolution of floats, which int8 does not make faster"
        else:
            layers.append(made)
    attentions = _attentions(program, skipped) if FP8 in formats else ()
    return replace(_placement(program, layers, attentions, weights, skipped, int8, scaled), kept=kept)


def _attentions(program: ExportedProgram, skipped: set[fx.Node]) -> tuple[fx.Node, ...]:
    found = (node for node in program.graph.nodes if node.target is _ATTENTION and node not in skipped)
    return tuple(node for node in found if node.meta["val"].dtype != torch.float64)


def among(
    program: ExportedProgram,
    layers: Collection[Layer],
    skip_layers: Collection[str] = (),
    attentions: Collection[fx.Node] = (),
    int8: Int8Abilities = ALL,
) -> Placement:
    """The placement where only these of `place`'s layers and attentions are quantized, in the program's order."""
    return _placement(program, layers, attentions, weights_of(program), skipped_nodes(program, skip_layers), int8)


def apart(placement: Placement, names: Collection[str]) -> Placement:
    """The placement where values have a point of their own for the users that do not concatenate them, where there is a range by
    `name_apart` among the names.
    """
    points: list[Point] = []
    for point in placement.points:
        joined = tuple(user for user in point.users if _is_joined(user))
        name = name_apart(point.name)
        others = tuple(user for user in point.users if user not in joined)
        if name not in names or not others:
            points.append(point)
        else:
            points += [replace(point, users=joined)] if joined else []
            points.append(replace(point, name=name, users=others))
    return replace(placement, points=tuple(points))


def name_apart(name: str) -> str:
    """What the range of a value is called that holds where it is not concatenated. name: of its point."""
    return f"{name} alone"


def _is_joined(user: fx.Node) -> bool:
    """Whether a user of a quantized value concatenates it, or moves it to where that is done."""
    return user.target in _CONCATENATIONS or (_commutes(user) and any(_is_joined(next_) for next_ in user.users))


def worthwhile(program: ExportedProgram, layers: Collection[Layer]) -> tuple[Layer, ...]:
    """The layers without the depthwise convolutions that have no int8 layer before them among these."""
    weights = weights_of(program)
    found: list[Layer] = []
    for made in layers:
        if not _is_depthwise_on_floats(made, {other.node for other in found}, weights):
            found.append(made)
    return tuple(found)


def _placement(
    program: ExportedProgram,
    layers: Collection[Layer],
    attentions: Collection[fx.Node],
    weights: set[str],
    skipped: set[fx.Node],
    int8: Int8Abilities,
    scaled: Mapping[fx.Node, set[fx.Node]] | None = None,
) -> Placement:
    """scaled: what is quantized to int8 besides the layers' inputs, and for whom."""
    takers: dict[torch.dtype, dict[fx.Node, set[fx.Node]]] = {
        torch.int8: {node: set(users) for node, users in (scaled or {}).items()},
        FP8: {},
    }
    for found in layers:
        takers[found.dtype].setdefault(found.x, set()).add(found.node)
    for node in attentions:
        for source in node.args[:3]:
            takers[FP8].setdefault(source, set()).add(node)  # type: ignore[arg-type]
    points: tuple[Point, ...] = ()
    for dtype, wanting in takers.items():
        points += _points(program, wanting, weights, skipped, dtype, len({point.group for point in points}), int8.adds)
    return Placement(tuple(layers), points, tuple(attentions), int8=int8)


def name_of_point(node: fx.Node, dtype: torch.dtype) -> str:
    """What ranges of a value that is quantized are called."""
    return name_of(node) if dtype == torch.int8 else f"{name_of(node)} in {str(dtype).removeprefix('torch.')}"


def _takes_pixels(layer: Layer) -> bool:
    """Whether a convolution's input has no more channels than pictures have."""
    weight = layer.weight.meta["val"]
    grouped = layer.node.target in CONVOLUTIONS and argument(layer.node, "groups") != 1
    return layer.node.target in CONVOLUTIONS and not grouped and weight.shape[1] <= _PIXEL_CHANNELS


def _is_depthwise_on_floats(layer: Layer, quantized: set[fx.Node], weights: set[str]) -> bool:
    """Whether a depthwise convolution, which gains nothing by itself, has no int8 layer before it to pass numbers on from."""
    if (
        layer.node.target not in CONVOLUTIONS
        or argument(layer.node, "groups") in (1, None)
        or layer.weight.meta["val"].shape[1] != 1
    ):
        return False
    source = layer.x
    while source.target in POINTWISE or _commutes(source):
        source = source.args[0]  # type: ignore[assignment]
        if not isinstance(source, fx.Node):
            return False
    return source not in quantized and (source.op == "placeholder" or layer_of(source, weights) is not None)


def _points(
    program: ExportedProgram,
    takers: dict[fx.Node, set[fx.Node]],
    weights: set[str],
    skipped: set[fx.Node],
    dtype: torch.dtype,
    group: int,
    adds: bool,
) -> tuple[Point, ...]:
    """The values to quantize. takers: for each value the nodes that want it in the dtype. group: the least number for one.
    adds: see `Int8Abilities`.

    Sums and means go on in int8, and not in fp8, which adds up too roughly.
    """
    is_int8 = dtype == torch.int8
    groups = _Groups()
    points = []
    int8 = {taker for users in takers.values() for taker in users}
    for node in reversed(program.graph.nodes):
        wanting = takers.get(node, set())
        if wanting and is_int8 and _averages(node, int8) and node not in skipped:
            takers.setdefault(node.args[0], set()).add(node)
        is_sum = is_int8 and _is_sum_for(node, takers, weights, skipped)
        if not wanting and not is_sum:
            continue
        above = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        moves = _commutes(node) and node not in skipped and not any(n.name in weights for n in above)
        if wanting and moves and wanting == set(node.users):
            for source in above:
                takers.setdefault(source, set()).add(node)
                groups.join(node, source)
            continue
        if is_sum:
            for source in _stored(above, weights) if adds else above:
                takers.setdefault(source, set()).add(node)
        if wanting:
            following = {u for u in node.users if is_int8 and u.target in _FOLLOWING and u not in skipped}
            points.append((node, wanting | following))
    numbers: dict[fx.Node, int] = {}
    return tuple(
        Point(
            node,
            name_of_point(node, dtype),
            tuple(u for u in node.users if u in users),
            numbers.setdefault(groups.root(node), group + len(numbers)),
            dtype,
        )
        for node, users in reversed(points)
    )


def _averages(node: fx.Node, int8: set[fx.Node]) -> bool:
    """Whether the node averages what int8 layers, or the sum of one's result and another value, give.

    Such a layer then writes int8, and a sum before it is one of int8's; that each number is rounded is lost in the mean.
    """
    if node.target not in POOLING:
        return False
    source = _before_pointwise(node.args[0])
    addends = source.args[:2] if isinstance(source, fx.Node) and source.target in _SUMS else (source,)
    return any(_before_pointwise(addend) in int8 for addend in addends)


def _before_pointwise(value: Argument) -> Argument:
    while isinstance(value, fx.Node) and value.target in POINTWISE:
        value = value.args[0]
    return value


def _commutes(node: fx.Node) -> bool:
    if node.target in _PADS:  # by zeros, which every grid has
        return not argument(node, "value") and (node.target is not aten.pad.default or argument(node, "mode") == "constant")
    return node.target in COMMUTING or node.target in _CONCATENATIONS


def _is_sum_for(node: fx.Node, takers: dict[fx.Node, set[fx.Node]], weights: set[str], skipped: set[fx.Node]) -> bool:
    """Whether the node adds two branches, and its result, activated or not, flows into int8."""
    if node.target not in _SUMS or node in skipped or node.kwargs.get("alpha", 1) != 1:
        return False
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right or {left.name, right.name} & weights:
        return False
    if not same_shape(left.meta["val"], right.meta["val"]) or not left.meta["val"].is_floating_point():
        return False
    return bool(takers.get(node)) or any(u.target in POINTWISE and takers.get(u) for u in node.users)


def _stored(addends: Collection[fx.Node], weights: set[str]) -> list[fx.Node]:
    """Of a sum's branches those that another kernel has written: the last layer that nothing else reads adds up as it goes."""
    layers = [n for n in addends if len(n.users) == 1 and layer_of(n, weights) is not None]
    return [n for n in addends if not layers or n is not max(layers)]


class _Groups:
    """Values that must share a scale, as a forest."""

    def __init__(self) -> None:
        self._parents: dict[fx.Node, fx.Node] = {}

    def root(self, node: fx.Node) -> fx.Node:
        while node in self._parents:
            node = self._parents[node]
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        a, b = self.root(a), self.root(b)
        if a is not b:
            self._parents[a] = b
