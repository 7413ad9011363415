"""Pointwise nodes as Triton text: the bodies of epilogues, prologues and pointwise kernels.

Floating values are computed in float32 registers (float64 in float64), whatever their dtypes: a cast between floating dtypes
that stays inside a kernel costs no accuracy. Integers and bools keep their dtypes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import TRITON_TYPES
from torchsmith.backends.cuda.layout import Placed
from torchsmith.backends.cuda.steps import Hook
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, Shape, product, same, simplify
from torchsmith.ir.graph import Node, Value

OPERANDS, SIZES = 8, 4  # how many of each a kernel template has room for: parameters e0..e7 and z0..z3
PARAMETERS = ", ".join([*(f"e{i}" for i in range(OPERANDS)), *(f"z{i}" for i in range(SIZES))])

UNARY: dict[str, str] = {
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "log": "tl.log({0})",
    "log2": "tl.log2({0})",
    "log1p": "tl.log(1.0 + {0})",
    "sqrt": "sqrt({0})",
    "rsqrt": "tl.rsqrt({0})",
    "reciprocal": "(1.0 / {0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "sigmoid": "tl.sigmoid({0})",
    "silu": "({0} * tl.sigmoid({0}))",
    "tanh": "tanh({0})",
    "mish": "({0} * tanh(softplus({0})))",
    "softplus": "softplus({0})",
    "logsigmoid": "(-softplus(-({0})))",
    "hardswish": "({0} * clip({0} + 3.0, 0.0, 6.0) * (1.0 / 6.0))",
    "hardsigmoid": "(clip({0} + 3.0, 0.0, 6.0) * (1.0 / 6.0))",
    "relu": "relu({0})",
    "neg": "(-({0}))",
    "abs": "tl.abs({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "isnan": "({0} != {0})",
    "isinf": "(tl.abs({0}) == float('inf'))",
    "isfinite": "(tl.abs({0}) < float('inf'))",
    "logical_not": "({0} == 0)",
}
BINARY: dict[str, str] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "bitwise_and": "({0} & {1})",
    "bitwise_or": "({0} | {1})",
    "bitwise_xor": "({0} ^ {1})",
    "logical_and": "({0} & {1})",
    "logical_or": "({0} | {1})",
    "logical_xor": "({0} ^ {1})",
}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_FLOAT_ONLY = frozenset({"exp", "exp2", "log", "log2", "sqrt", "rsqrt", "floor", "ceil", "abs", "neg", "relu"})


def register_type(dtype: torch.dtype) -> str:
    """What a value is in registers."""
    if dtype.is_floating_point:
        return "fp64" if dtype == torch.float64 else "fp32"
    return TRITON_TYPES[dtype]


def expression(node: Node, names: Sequence[str]) -> str:
    """Triton text of a pointwise node over names for its inputs. Raises Unsupported, with the reason, for what has none."""
    op, kind = node.op, type(node.op).__name__
    dtype = node.inputs[0].type.dtype
    if kind == "Unary":
        text = UNARY.get(op.function)  # type: ignore[attr-defined]
        if text is None:
            raise Unsupported(f"{op} has no Triton expression")
        return text.format(*names)
    if kind == "Binary":
        text = BINARY.get(op.function)  # type: ignore[attr-defined]
        if text is None or (op.function == "div" and not dtype.is_floating_point):  # type: ignore[attr-defined]
            raise Unsupported(f"{op} of {dtype} has no Triton expression")
        return text.format(*names)
    if kind == "Compare":
        return f"({names[0]} {COMPARE[op.function]} {names[1]})"  # type: ignore[attr-defined]
    if kind == "Where":
        return f"tl.where({names[0]}, {names[1]}, {names[2]})"
    if kind == "Gelu":
        return f"gelu_tanh({names[0]})" if op.approximate == "tanh" else f"gelu({names[0]})"  # type: ignore[attr-defined]
    if kind == "LeakyRelu":
        return f"tl.where({names[0]} > 0, {names[0]}, {names[0]} * {literal(op.slope)})"  # type: ignore[attr-defined]
    if kind == "Cast":
        return _cast(names[0], dtype, op.dtype)  # type: ignore[attr-defined]
    raise Unsupported(f"{op} has no Triton expression")


def _cast(name: str, given: torch.dtype, wanted: torch.dtype) -> str:
    if wanted == torch.bool:
        return f"({name} != 0)"
    if given.is_floating_point and wanted.is_floating_point and register_type(given) == register_type(wanted):
        return name
    return f"{name}.to(tl.{_python_type(register_type(wanted))})"


def _python_type(name: str) -> str:
    """tl's attribute for a Triton type."""
    named = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "i1": "int1", "u8": "uint8"}
    return named.get(name, name.replace("i", "int", 1) if name.startswith("i") else name)


def literal(number: float) -> str:
    if isinstance(number, float) and not math.isfinite(number):
        return f"float('{number}')"
    return repr(number)


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
    parameters e0.. and z0.. are to be.
    """

    placed: Placed
    constants: Callable[[Value], Tensor | None]
    operands: list[Value] = field(default_factory=list)
    sizes: list[Dim] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)

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
        rank = len(space.shape)
        shape, strides = value.type.shape, self.placed[value].strides
        padded: list[Dim] = [0] * (rank - len(shape)) + [0 if same(n, 1) else s for n, s in zip(shape, strides, strict=True)]
        terms: list[str] = []
        for index, axes in space.indices:
            terms += self._terms(index, [space.shape[a] for a in axes], [padded[a] for a in axes])
        return " + ".join(terms) or "0"

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
        register = _python_type(register_type(value.type.dtype))
        if space.masks is not None:
            mask = " & ".join(m for index, m in space.masks if m and self._depends(value, space, index))
        guard = "" if where == "0" or not mask else f", mask={mask}, other=0"
        self.lines.append(f"{name} = tl.load({pointer} + {where}{guard}).to(tl.{register})")
        self.names[value] = name
        return name

    def compute(self, nodes: Iterable[Node], space: Space, mask: str = "mask") -> None:
        """Add the nodes, in order, loading what they need."""
        for node in nodes:
            inputs = [self.load(v, space, mask) for v in node.inputs]
            name = self._fresh()
            self.lines.append(f"{name} = {expression(node, inputs)}")
            self.names[node.outputs[0]] = name

    def _fresh(self) -> str:
        return f"v{len(self.lines)}"

    def hook(self, kind: str, parameters: Sequence[str], returns: Sequence[str]) -> Hook:
        body = "".join(f"    {line}\n" for line in self.lines)
        text = f"({', '.join(parameters)}, {PARAMETERS}):\n{body}    return {', '.join(returns)}\n"
        name = f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return Hook(name, f"def {name}{text}")

    def arguments(self) -> dict[str, Value | Dim | None]:
        """The kernel's parameters e0.. and z0..."""
        operands = dict(zip((f"e{i}" for i in range(OPERANDS)), [*self.operands, *[None] * OPERANDS], strict=False))
        sizes = dict(zip((f"z{i}" for i in range(SIZES)), [*self.sizes, *[None] * SIZES], strict=False))
        return {**operands, **sizes}


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


def scalar_of(value: Value, constants: Mapping[Value, Tensor]) -> float | None:
    tensor = constants.get(value)
    return None if tensor is None or tensor.numel() != 1 else float(tensor.item())
