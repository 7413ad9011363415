"""How a tactic turns a node into steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.cuda.layout import Placed, View, byte_alignment, contiguous, divisible
from torchsmith.backends.cuda.precision import Tf32
from torchsmith.backends.cuda.steps import Call, Hook, Kernel, Launch, Step
from torchsmith.ir.dim import Dim, bind, symbols_in
from torchsmith.ir.graph import Node, Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType, type_of

TRITON_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


class Packed:
    """Constants in the layouts that tactics want them in: each made once, whoever asks.

    tf32: where they, and what they are multiplied by, may be rounded.
    """

    def __init__(self, constants: Mapping[Value, Tensor], tf32: Tf32 | None = None) -> None:
        self.tf32 = tf32 or Tf32()
        self.tensors: dict[Value, Tensor] = dict(constants)
        self._made: dict[tuple[Value, str], Value] = {}

    def get(self, source: Value, how: str, make: Callable[[Tensor], Tensor]) -> Value:
        if (source, how) not in self._made:
            tensor = make(self.tensors[source]).contiguous()
            value = Value(f"{source.name}.{how}", type_of(tensor))
            self.tensors[value] = tensor
            self._made[source, how] = value
        return self._made[source, how]


class Emission:
    """The steps of one node, as a tactic adds them.

    Views come from `placed`; `temporary` and `packed` add values of their own, which are contiguous.
    """

    def __init__(self, node: Node, placed: Placed, packed: Packed, suffix: str = "", at: Mapping[str, int] | None = None) -> None:
        """suffix: of temporaries' names, so that two variants of an engine have different ones. at: sizes to guess for."""
        self.node = node
        self._suffix, self._at = suffix, at or {}
        self.steps: list[Step] = []
        self.views: dict[Value, View] = dict(placed)
        self._packed = packed
        self._temporaries = 0

    def view(self, value: Value) -> View:
        return self.views[value]

    def likely(self, size: Dim, otherwise: int) -> int:
        """A number to guess with: the size, where it is known for what the tactic is chosen for."""
        return int(bind(size, self._at)) if symbols_in(size) <= self._at.keys() else otherwise

    @property
    def tf32(self) -> Tf32:
        return self._packed.tf32

    def precision(self, node: Node) -> str:
        """How a kernel multiplies the node's operands where they are float32: "ieee" or "tf32"."""
        return "tf32" if self.tf32.of_node(node) else "ieee"

    def constant(self, value: Value) -> Tensor | None:
        """The tensor of a constant, None for what is only known when the engine runs."""
        return self._packed.tensors.get(value)

    def packed(self, value: Value, how: str, make: Callable[[Tensor], Tensor]) -> Value:
        """A constant in another layout or dtype. how: a name for `make`, the same for the same function."""
        made = self._packed.get(value, how, make)
        self.views.setdefault(made, View(made, contiguous(made.type.shape)))
        return made

    def temporary(self, shape: Sequence[Dim], dtype: torch.dtype, name: str = "temporary") -> Value:
        """Contiguous scratch memory between this node's steps."""
        value = Value(f"{self.node.outputs[0].name}.{name}{self._temporaries}{self._suffix}", TensorType(tuple(shape), dtype))
        self._temporaries += 1
        self.views[value] = View(value, contiguous(value.type.shape))
        return value

    def launch(
        self,
        function: Any,
        grid: Sequence[Dim],
        arguments: Mapping[str, Any],
        writes: Sequence[Value],
        num_warps: int = 4,
        num_stages: int = 2,
    ) -> None:
        """Add a kernel. arguments: by the Triton function's parameter names, all of them.

        A `Value` becomes a pointer to its first element, a symbolic size a 32-bit integer at run time; numbers, text, None,
        dtypes and `Hook`s become constants that the kernel is compiled for.
        """
        types: list[tuple[str, str]] = []
        aligned: set[str] = set()
        constants: list[tuple[str, Any]] = []
        given: list[Value | Dim | float] = []
        names = list(_parameters(function))
        assert set(names) == set(arguments), f"{function}: {set(names) ^ set(arguments)}"
        for name in names:
            argument = arguments[name]
            if isinstance(argument, Value):
                types.append((name, f"*{TRITON_TYPES[argument.type.dtype]}"))
                if byte_alignment(self.views[argument], argument.type.dtype) >= 16:
                    aligned.add(name)
                given.append(argument)
            elif isinstance(argument, torch.dtype):
                constants.append((name, TRITON_TYPES[argument]))
            elif argument is None or isinstance(argument, (bool, int, float, str, Hook)):
                constants.append((name, argument))
            else:  # a symbolic size
                types.append((name, "i32"))
                if divisible(argument, 16):
                    aligned.add(name)
                given.append(argument)
        kernel = Kernel(
            function.fn.__module__, function.fn.__name__, tuple(types), frozenset(aligned), tuple(constants), num_warps, num_stages
        )
        x, y, z = (*grid, 1, 1, 1)[:3]
        self.steps.append(Launch(kernel, (x, y, z), tuple(given), tuple(writes), self.node.origin))

    def call(self, op: Op, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """Add an op that runs in PyTorch: a library's kernel."""
        tf32 = self.tf32.of(op, inputs[0].type.dtype) if inputs else None
        self.steps.append(Call(op, tuple(inputs), tuple(outputs), self.node.origin, tf32))


def _parameters(function: Any) -> Sequence[str]:
    import inspect

    return list(inspect.signature(function.fn).parameters)
