"""What a node's time depends on, as text: two nodes with the same signature are the same problem, whatever their names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from torchsmith.backends.cuda.fuse.fused import Fused, flattened
from torchsmith.backends.cuda.layout import Placed, byte_alignment
from torchsmith.backends.cuda.precision import Tf32
from torchsmith.ir.dim import simplify, symbol, symbols_in
from torchsmith.ir.graph import Node, Value
from torchsmith.sparsity.pattern import is_two_four

EIGHT_BITS = frozenset({torch.int8, torch.uint8, torch.float8_e4m3fn})


def signature(
    node: Node, placed: Placed, constant: Callable[[Value], Tensor | None], at: Mapping[str, int], tf32: Tf32 | None = None
) -> str:
    """The node's ops with their attributes, its types and layouts, which inputs are constants, and the sizes `at` which it runs.

    constant: a constant's tensor, None for other values. tf32: where float32 may be rounded; nowhere if it is not given.
    """
    return _Writer(placed, constant, tf32 or Tf32()).write(node, at)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _known(tensor: Tensor) -> str:
    """Of a constant; 2:4 weights have tactics of their own."""
    return ", constant, 2:4" if tensor.dim() > 1 and is_two_four(tensor) else ", constant"


class _Writer:
    def __init__(self, placed: Placed, constant: Callable[[Value], Tensor | None], tf32: Tf32) -> None:
        self.placed, self.constant, self.tf32 = placed, constant, tf32
        self.names: dict[Value, str] = {}
        self.roots: dict[Value, str] = {}
        self.symbols: dict[str, sympy.Symbol] = {}
        self.quantized = False

    def write(self, node: Node, at: Mapping[str, int]) -> str:
        self.quantized = any(v.type.dtype in EIGHT_BITS for n in flattened([node]) for v in (*n.inputs, *n.outputs))
        lines = [node.op.kind if isinstance(node.op, Fused) else "node"]
        lines += [self.edge(value) for value in dict.fromkeys(node.inputs)]
        for inner in flattened([node]):
            attributes = ", ".join(f"{k}={self.text(v)}" for k, v in inner.op.attributes().items())
            given = ", ".join(self.names.get(v) or self.edge(v) for v in inner.inputs)
            made = ", ".join(f"{self.name(v)}: {self.type(v)}" for v in inner.outputs)
            rounded = " in tf32" if self.tf32.of_node(inner) else ""
            lines.append(f"{made} = {type(inner.op).__name__}({attributes})({given}){rounded}")
        lines += [f"return {self.edge(value)}" for value in node.outputs]
        lines += [f"{canonical} = {at[name]}" for name, canonical in self.symbols.items() if name in at]
        return "\n".join(lines)

    def name(self, value: Value) -> str:
        return self.names.setdefault(value, f"v{len(self.names)}")

    def edge(self, value: Value) -> str:
        """A value that stands in memory."""
        name, tensor = self.name(value), self.constant(value)
        if tensor is not None and tensor.numel() == 1:
            return f"{name}: {self.type(value)} is {self.number(tensor.item())}"
        view = self.placed[value]
        root = self.roots.setdefault(view.root, f"r{len(self.roots)}")
        where = f"{root} by {self.text(view.strides)} from a multiple of {byte_alignment(view, value.type.dtype)} bytes"
        return f"{name}: {self.type(value)} in {where}" + ("" if tensor is None else _known(tensor))

    def number(self, number: float) -> str:
        """As text. In what is quantized, scales and zero points are each layer's own, and change nothing but the results.

        Whole numbers and halves may decide how a float's op is written, as exponents do.
        """
        if not self.quantized or not math.isfinite(number) or number in (-1, 0, 1):
            return repr(number)
        if isinstance(number, float):
            return repr(number) if (2 * number).is_integer() else "a number"
        return "a whole number"

    def type(self, value: Value) -> str:
        return f"{str(value.type.dtype).removeprefix('torch.')}{self.text(value.type.shape)}"

    def text(self, attribute: Any) -> str:
        """An attribute, with symbols called d0, d1, … in the order in which they are met."""
        if isinstance(attribute, (tuple, list)):
            return f"[{', '.join(map(self.text, attribute))}]"
        if isinstance(attribute, sympy.Expr):
            for name in sorted(symbols_in(attribute)):
                self.symbols.setdefault(name, symbol(f"d{len(self.symbols)}"))
            return str(simplify(attribute.xreplace({symbol(n): s for n, s in self.symbols.items()})))
        return self.number(attribute) if isinstance(attribute, float) else repr(attribute)
