"""Pointwise nodes as Triton text: the bodies of epilogues, prologues and pointwise kernels.

Floating values are computed in float32 registers (float64 in float64), whatever their dtypes: a cast between floating dtypes
that stays inside a kernel costs no accuracy. Integers and bools keep their dtypes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from torchsmith.backends.cuda.emission import TRITON_TYPES
from torchsmith.backends.cuda.expressions import (
    Steps,
    coarse_text,
    expression,
    literal,
    no_integer,
    python_type,
    register_type,
    scaled_text,
    steps_of,
    zero_text,
)
from torchsmith.backends.cuda.layout import Placed
from torchsmith.backends.cuda.steps import Hook
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, Shape, product, same, simplify
from torchsmith.ir.graph import Node, Value
from torchsmith.ops.cast import Cast

OPERANDS, SIZES = 8, 4  # how many of each a kernel template has room for: parameters e0..e7 and z0..z3
PARAMETERS = ", ".join([*(f"e{i}" for i in range(OPERANDS)), *(f"z{i}" for i in range(SIZES))])

# How values are read at their coordinates, by class of op: see `reads.py`. They stand only at the start of a pointwise kernel.
READS = frozenset({"Concat", "Pad", "Resize", "Gather", "GatherElements", "Tile"})


def is_pointwise(node: Node) -> bool:
    """Whether a kernel template can take the node into its registers."""
    if any(v.type.dtype not in TRITON_TYPES for v in (*node.inputs, *node.outputs)):
        return False
    try:
        expression(node, ["x"] * len(node.inputs))
    except Unsupported:
        return False
    return True


@dataclass
class HookWriter:
    """Writes one hook.

    coordinates: which index counts which dimensions of the hook's space; see `Space`. operands, sizes: what the kernel's
    parameters e0.. and z0.. are to be. places: lines that coordinates need. lines: all others. loads: of `lines`, those that
    load: what is loaded, and the type that it is computed in.
    """

    placed: Placed
    constants: Callable[[Value], Tensor | None]
    operands: list[Value] = field(default_factory=list)
    sizes: list[Dim] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    loads: dict[int, tuple[str, str]] = field(default_factory=dict)
    names: dict[Value, str] = field(default_factory=dict)
    quantized: dict[Value, Steps] = field(default_factory=dict)  # what the hook itself quantizes
    made: dict[Value, Node] = field(default_factory=dict)  # what nothing else in the hook takes, by what gave it

    def operand(self, value: Value) -> str:
        if value not in self.operands:
            if len(self.operands) == OPERANDS:
                raise Unsupported(f"a fused node has more than {OPERANDS} operands besides its main ones")
            self.operands.append(value)
        return f"e{self.operands.index(value)}"

    def size(self, size: Dim) -> str:
        """Text of a size: the number, or the parameter that carries it."""
        size = simplify(size)
        if isinstance(size, int):
            return str(size)
        for index, known in enumerate(self.sizes):
            if same(known, size):
                return f"z{index}"
        if len(self.sizes) == SIZES:
            raise Unsupported(f"a fused node has more than {SIZES} sizes that are known only at run time")
        self.sizes.append(size)
        return f"z{len(self.sizes) - 1}"

    def offset(self, value: Value, space: Space) -> str:
        """Text of the element's place in the operand, broadcast over the space."""
        return self.address(value.type.shape, self.placed[value].strides, space)

    def address(self, shape: Shape, strides: Shape, space: Space) -> str:
        """Text of the sum of coordinate times stride, of a tensor that is broadcast over the space."""
        rank = len(space.shape)
        padded: list[Dim] = [0] * (rank - len(shape)) + [0 if same(n, 1) else s for n, s in zip(shape, strides, strict=True)]
        terms: list[str] = []
        for index, axes in space.indices:
            terms += self._terms(index, [space.shape[a] for a in axes], [padded[a] for a in axes])
        return " + ".join(terms) or "0"

    def coordinate(self, axis: int, space: Space) -> str:
        """Text of the element's place along one dimension of the space."""
        for index, axes in space.indices:
            if axis in axes:
                position = axes.index(axis)
                inner = product([space.shape[a] for a in axes[position + 1 :]])
                text = index if same(inner, 1) else f"({index} // {self.size(inner)})"
                outermost = all(same(space.shape[a], 1) for a in axes[:position])
                return text if outermost else f"({text} % {self.size(space.shape[axis])})"
        return "0"

    def add(self, text: str) -> str:
        """The name of a new line's result."""
        name = self._fresh()
        self.lines.append(f"{name} = {text}")
        return name

    def _depends(self, value: Value, space: Space, index: str) -> bool:
        """Whether the operand's offset contains that index."""
        axes = next((axes for text, axes in space.indices if text == index), ())
        missing = len(space.shape) - value.type.rank
        return any(
            a >= missing and not same(value.type.shape[a - missing], 1) and not same(self.placed[value].strides[a - missing], 0)
            for a in axes
        )

    def _terms(self, index: str, sizes: Sequence[Dim], strides: Sequence[Dim]) -> list[str]:
        """`index` counts the dimensions row-major; the sum of coordinate times stride, with as few divisions as can be."""
        groups: list[tuple[Dim, Dim]] = []  # (size, stride) from outermost to innermost
        for size, stride in zip(sizes, strides, strict=True):
            if same(size, 1):
                continue
            if groups and (same(groups[-1][1], size * stride)):
                groups[-1] = (product((groups[-1][0], size)), stride)
            else:
                groups.append((size, stride))
        terms = []
        for position, (size, stride) in enumerate(groups):
            if same(stride, 0):
                continue
            inner = product([n for n, _ in groups[position + 1 :]])
            text = index if same(inner, 1) else f"({index} // {self.size(inner)})"
            text = text if position == 0 else f"({text} % {self.size(size)})"
            terms.append(text if same(stride, 1) else f"{text} * {self.size(stride)}")
        return terms

    def load(self, value: Value, space: Space, mask: str = "mask") -> str:
        """The name of an operand in registers; a constant of one element is written into the text."""
        if value in self.names:
            return self.names[value]
        tensor = self.constants(value)
        if tensor is not None and tensor.numel() == 1:
            self.names[value] = f"({literal(tensor.item())})"
            return self.names[value]
        name = self._fresh()
        where = self.offset(value, space)
        pointer = self.operand(value)
        register = python_type(register_type(value.type.dtype))
        if space.masks is not None:
            mask = " & ".join(m for index, m in space.masks if m and self._depends(value, space, index))
        guard = "" if where == "0" or not mask else f", mask={mask}, other={no_integer('0', register)}"
        self.loads[len(self.lines)] = (f"tl.load({pointer} + {where}{guard})", f"tl.{register}")
        self.lines.append(f"{name} = tl.load({pointer} + {where}{guard}).to(tl.{register})")
        self.names[value] = name
        return name

    def compute(self, nodes: Iterable[Node], space: Space, mask: str = "mask") -> None:
        """Add the nodes, in order, loading what they need."""
        nodes = list(nodes)
        uses = Counter(v for node in nodes for v in node.inputs)
        for node in nodes:
            if type(node.op).__name__ in READS:
                from torchsmith.backends.cuda.reads import read

                read(self, node, space, mask)
                continue
            (result,) = node.outputs
            inputs = [self.load(v, space, mask) for v in node.inputs]
            if uses[result] == 1:
                self.made[result] = node
            if type(node.op).__name__ == "Quantize":
                self._with_less(node, inputs)
            found = self._dequantized(node, inputs) if type(node.op).__name__ == "Dequantize" else None
            self.names[result] = self.add(found or expression(node, inputs))

    def _with_less(self, node: Node, names: list[str]) -> None:
        """Notes how a value is quantized; where eight bits are as good by a cheaper way to it, takes that, into `names`.

        Relu is passed over where the limits do as much. What it replaces is left to the compiler, which sees that nothing needs it.
        """
        steps = steps_of(node, names)
        if steps is None or register_type(node.inputs[0].type.dtype) != "fp32":
            return
        before = self.made.get(node.inputs[0])
        if steps.never_negative() and before is not None and str(before.op) == "Unary[relu]":
            names[0] = self.names[before.inputs[0]]
        elif node.outputs[0].type.dtype.itemsize == 1:
            names[0] = self._coarse(node.inputs[0]) or names[0]
        steps = replace(steps, scaled=scaled_text(names))
        self.quantized[node.outputs[0]] = steps

    def _coarse(self, value: Value) -> str | None:
        """The name of the value from a coarser function, past products and casts of it; None where there is none."""
        node = self.made.get(value)
        if node is None or register_type(value.type.dtype) != "fp32":
            return None
        names = [self.names[v] for v in node.inputs]
        if isinstance(node.op, Cast) and register_type(node.inputs[0].type.dtype) == "fp32":
            return self._coarse(node.inputs[0])
        if str(node.op) == "Binary[mul]":
            for index, given in enumerate(node.inputs):
                if (found := self._coarse(given)) is not None:
                    return self.add(f"({found} * {names[1 - index]})")
            return None
        text = coarse_text(node, names)
        return None if text is None else self.add(text)

    def _dequantized(self, node: Node, names: Sequence[str]) -> str | None:
        """Of what the hook itself quantized, with the same zero point: the number was never made an integer."""
        steps = self.quantized.get(node.inputs[0])
        op: Any = node.op
        if steps is None or op.axis is not None or register_type(op.dtype) != "fp32":
            return None
        return f"({steps.number()} * {names[1]})" if zero_text(names) == steps.zero else None

    def _fresh(self) -> str:
        return f"v{len(self.lines)}"

    def hook(self, kind: str, parameters: Sequence[str], returns: Sequence[str]) -> Hook:
        """One function of the lines. returns: names; nothing where what it does is to store."""
        return _function(kind, parameters, [*self.places, *self.lines], ", ".join(returns))

    def early_hook(self, kind: str, parameters: Sequence[str], returns: Sequence[str]) -> tuple[Hook | None, Hook]:
        """The same in two: what loads the operands, None where there are none, and what computes.

        The first parameter is for the second only, which also takes `loaded`, the first's tuple, next.
        """
        if not self.loads:
            return None, self.hook(kind, parameters, returns)
        first, *others = parameters
        lines = list(self.lines)
        for position, (index, (_, register)) in enumerate(self.loads.items()):
            lines[index] = f"v{index} = loaded[{position}].to({register})"
        loads = "".join(f"{load}, " for load, _ in self.loads.values())
        early = _function(f"{kind}_loads", others, self.places, f"({loads})")
        return early, _function(kind, [first, "loaded", *others], [*self.places, *lines], ", ".join(returns))

    def arguments(self) -> dict[str, Value | Dim | None]:
        """The kernel's parameters e0.. and z0..."""
        operands = dict(zip((f"e{i}" for i in range(OPERANDS)), [*self.operands, *[None] * OPERANDS], strict=False))
        sizes = dict(zip((f"z{i}" for i in range(SIZES)), [*self.sizes, *[None] * SIZES], strict=False))
        return {**operands, **sizes}


def _function(kind: str, parameters: Sequence[str], lines: Sequence[str], returns: str) -> Hook:
    body = "".join(f"    {line}\n" for line in [*lines, *([f"return {returns}"] if returns else [])])
    text = f"({', '.join(parameters)}, {PARAMETERS}):\n{body}"
    name = f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Hook(name, f"def {name}{text}")


@dataclass(frozen=True)
class Space:
    """What a hook runs over. shape: the logical one, against which operands broadcast.

    indices: (text, dimensions) pairs; each text is an integer tensor that counts its dimensions row-major, and all of them
    together cover every dimension whose size is not 1. masks: for indices the text of what keeps each within its dimensions
    ("" where it always is), so that an operand is loaded under the masks of those it depends on; None: all under the hook's.
    """

    shape: Shape
    indices: tuple[tuple[str, tuple[int, ...]], ...]
    masks: tuple[tuple[str, str], ...] | None = None
