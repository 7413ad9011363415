"""An engine as data: a safetensors file with the weights and the kernels' machine code, and a JSON plan in its metadata.

Reading it runs no code: sizes are parsed strictly, ops are looked up by name, and every reference is checked.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchsmith import sizes
from torchsmith.backends.cuda import integers, library, sparse  # noqa: F401  # their ops, which plans name
from torchsmith.backends.cuda.cubins import Cubin
from torchsmith.backends.cuda.driver import C_TYPES
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.precision import decides
from torchsmith.backends.cuda.steps import Launch, Step
from torchsmith.backends.cuda.two_four import Prepares
from torchsmith.errors import EngineMismatch
from torchsmith.ir.graph import Value
from torchsmith.ir.op import REGISTRY, Op
from torchsmith.ir.text import attribute_in, attribute_out
from torchsmith.ops.registry import load_all
from torchsmith.sizes import Dim
from torchsmith.target import Target

FORMAT = 1
_CODE = "code:"  # how tensors with machine code are called


@dataclass(frozen=True)
class PlannedValue:
    """shape, strides (in elements), offset: sizes as numbers or text. root: the value whose storage it is in."""

    shape: tuple[Dim, ...]
    dtype: torch.dtype
    root: str
    strides: tuple[Dim, ...]
    offset: Dim


@dataclass(frozen=True)
class PlannedKernel:
    """code: the name of its machine code among the tensors."""

    code: str
    symbol: str
    threads: int
    shared_bytes: int
    pdl: bool
    types: tuple[str, ...]


@dataclass(frozen=True)
class LaunchStep:
    """arguments: value names as {"value": name}, sizes as numbers or text."""

    kernel: int
    grid: tuple[Dim, Dim, Dim]
    arguments: tuple[Any, ...]
    writes: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CallStep:
    """tf32: whether float32 operands may be rounded to it, whatever PyTorch's switches say; None leaves it to them."""

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    tf32: bool | None = None


@dataclass(frozen=True)
class Variant:
    """Steps that were chosen for the sizes `at`. carveout: percent of an SM's memory that all its kernels ask for as shared
    memory; None leaves it to the driver."""

    at: Mapping[str, int]
    steps: tuple[LaunchStep | CallStep, ...]
    carveout: int | None = None


@dataclass(frozen=True)
class Plan:
    """inputs, outputs: names of values. constants: names of tensors. variants: at least one."""

    target: Target
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]
    values: Mapping[str, PlannedValue]
    kernels: tuple[PlannedKernel, ...]
    variants: tuple[Variant, ...]
    built_with: Mapping[str, str]

    @functools.cached_property
    def prepared(self) -> Mapping[str, Prepares]:
        """Constants that are laid out anew when the engine is loaded, with the op that does it."""
        calls = [s for v in self.variants for s in v.steps if isinstance(s, CallStep)]
        return {s.inputs[s.op.prepares]: s.op for s in calls if isinstance(s.op, Prepares)}


@dataclass(frozen=True)
class Emitted:
    """What the builder hands over: steps of one variant with what its report says of each. carveout: as in `Variant`."""

    at: Mapping[str, int]
    steps: Sequence[Step]
    about: Sequence[Mapping[str, Any]]
    carveout: int | None = None


def write(
    target: Target,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    variants: Sequence[Emitted],
    views: Mapping[Value, View],
    constants: Mapping[Value, Tensor],
    cubins: Mapping[str, Cubin],
    built_with: Mapping[str, str],
) -> bytes:
    """The engine's bytes. cubins: by `Kernel.key()`."""
    writing = _Writing(views, cubins)
    rows = [
        {"at": dict(v.at), "carveout": v.carveout, "steps": [writing.step(s, a) for s, a in zip(v.steps, v.about, strict=True)]}
        for v in variants
    ]
    plan = {
        "format": FORMAT,
        "target": target.to_json(),
        "built_with": dict(built_with),
        "inputs": [writing.name(v) for v in inputs],
        "outputs": [writing.name(v) for v in outputs],
        "values": writing.values,
        "kernels": writing.kernels,
        "variants": rows,
    }
    held = {v.name: t.contiguous().clone() for v, t in constants.items() if v in writing.used}
    return bytes(save_tensors({**held, **writing.code}, metadata={"plan": json.dumps(plan)}))


class _Writing:
    """A plan under way. used: roots of the values named so far. code: machine code, by the names that kernels call it."""

    def __init__(self, views: Mapping[Value, View], cubins: Mapping[str, Cubin]) -> None:
        self._views, self._cubins = views, cubins
        self.values: dict[str, Any] = {}
        self.used: set[Value] = set()
        self.kernels: list[dict[str, Any]] = []
        self.code: dict[str, Tensor] = {}
        self._numbers: dict[str, int] = {}

    def name(self, value: Value) -> str:
        view = self._views[value]
        if value.name not in self.values:
            self.values[value.name] = {
                "shape": _sizes(value.type.shape),
                "dtype": _dtype(value.type.dtype),
                "root": view.root.name,
                "strides": _sizes(view.strides),
                "offset": _size(view.offset),
            }
            if view.root is not value:
                self.name(view.root)
            self.used.add(view.root)
        return value.name

    def kernel(self, step: Launch) -> int:
        key = step.kernel.key()
        if key not in self._numbers:
            cubin = self._cubins[key]
            code = _CODE + hashlib.sha256(cubin.code).hexdigest()[:16]
            self.code[code] = torch.frombuffer(bytearray(cubin.code), dtype=torch.uint8)
            self._numbers[key] = len(self.kernels)
            row = {"code": code, "symbol": cubin.symbol, "threads": cubin.threads, "shared_bytes": cubin.shared_bytes}
            self.kernels.append({**row, "pdl": cubin.pdl, "types": [t for _, t in step.kernel.types]})
        return self._numbers[key]

    def step(self, step: Step, about: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(step, Launch):
            arguments = [{"value": self.name(a)} if isinstance(a, Value) else _size(a) for a in step.arguments]
            row = {"kernel": self.kernel(step), "grid": _sizes(step.grid), "arguments": arguments}
            return {**row, "writes": [self.name(v) for v in step.writes], "about": dict(about)}
        attributes = {k: attribute_out(v) for k, v in step.op.attributes().items()}
        return {
            **{"op": type(step.op).__name__, "attributes": attributes, "inputs": [self.name(v) for v in step.inputs]},
            **{"outputs": [self.name(v) for v in step.outputs], "about": dict(about)},
            **({} if step.tf32 is None else {"tf32": step.tf32}),
        }


def read(engine: bytes) -> tuple[Plan, dict[str, Tensor]]:
    """The plan, and the tensors on the CPU: weights by value names, machine code by `PlannedKernel.code`.

    Raises EngineMismatch for bytes that are no engine, or one of a newer format.
    """
    load_all()  # the ops that the plan names
    try:
        tensors = load_tensors(engine)
        size = int.from_bytes(engine[:8], "little")
        data = json.loads(json.loads(engine[8 : 8 + size])["__metadata__"]["plan"])
        if data["format"] > FORMAT:
            raise EngineMismatch(
                f"the engine has format {data['format']}, and this torchsmith reads up to {FORMAT}; update torchsmith"
            )
        plan = _plan(data, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as damage:
        raise EngineMismatch(
            f"these bytes are no cuda engine ({type(damage).__name__}: {damage}); compile the model again"
        ) from damage
    return plan, tensors


def _plan(data: dict[str, Any], tensors: Mapping[str, Tensor]) -> Plan:
    values = {name: _value(row) for name, row in data["values"].items()}
    kernels = tuple(_kernel(row, tensors) for row in data["kernels"])
    constants = tuple(n for n in tensors if not n.startswith(_CODE))
    for name, value in values.items():
        _known(value.root, values)
        if values[value.root].root != value.root:
            raise ValueError(f"{name} is in {value.root}, which is itself in {values[value.root].root}")
    variants = tuple(_variant(row, values, kernels) for row in data["variants"])
    if not variants:
        raise ValueError("it has no steps")
    inputs, outputs = tuple(_known(n, values) for n in data["inputs"]), tuple(_known(n, values) for n in data["outputs"])
    for name in constants:
        _known(name, values)
        if tuple(tensors[name].shape) != values[name].shape or tensors[name].dtype != values[name].dtype:
            raise ValueError(f"constant {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, and was to be {values[name]}")
    built = {str(k): str(v) for k, v in data["built_with"].items()}
    plan = Plan(Target.from_json(data["target"]), inputs, outputs, constants, values, kernels, variants, built)
    for name, op in plan.prepared.items():
        if name not in constants or tensors[name].dtype != torch.uint8 or tuple(tensors[name].shape) != op.stored_shape:
            raise ValueError(f"{op} takes bytes {op.stored_shape}, and {name} is not that")
    return plan


def _variant(row: dict[str, Any], values: Mapping[str, Any], kernels: Sequence[PlannedKernel]) -> Variant:
    carveout = row.get("carveout")
    if carveout is not None and (type(carveout) is not int or not 0 <= carveout <= 100):
        raise ValueError(f"{carveout!r} percent of an SM's memory cannot be shared memory")
    return Variant(_numbers(row["at"]), tuple(_step(s, values, kernels) for s in row["steps"]), carveout)


def _value(row: dict[str, Any]) -> PlannedValue:
    shape, strides = tuple(map(_checked, row["shape"])), tuple(map(_checked, row["strides"]))
    if len(shape) != len(strides):
        raise ValueError(f"a value of shape {shape} has strides {strides}")
    dtype = getattr(torch, str(row["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{row['dtype']!r} is no dtype")
    return PlannedValue(shape, dtype, str(row["root"]), strides, _checked(row["offset"]))


def _kernel(row: dict[str, Any], tensors: Mapping[str, Tensor]) -> PlannedKernel:
    code, threads, shared = str(row["code"]), row["threads"], row["shared_bytes"]
    if code not in tensors or not code.startswith(_CODE):
        raise ValueError(f"a kernel's code {code!r} is missing")
    if type(threads) is not int or not 32 <= threads <= 1024 or type(shared) is not int or not 0 <= shared <= 1 << 18:
        raise ValueError(f"a kernel has {threads} threads and {shared} bytes of shared memory")
    types = tuple(map(str, row["types"]))
    if unknown := [t for t in types if not t.startswith("*") and t not in C_TYPES]:
        raise ValueError(f"a kernel takes an argument of type {unknown[0]!r}")
    return PlannedKernel(code, str(row["symbol"]), threads, shared, row["pdl"] is True, types)


def _step(row: dict[str, Any], values: Mapping[str, Any], kernels: Sequence[PlannedKernel]) -> LaunchStep | CallStep:
    if "op" in row:
        op = REGISTRY[row["op"]](**{k: attribute_in(v) for k, v in row["attributes"].items()})
        names = [tuple(_known(n, values) for n in row[side]) for side in ("inputs", "outputs")]
        if isinstance(op, Prepares) and len(names[0]) <= op.prepares:
            raise ValueError(f"{op} has {len(names[0])} inputs")
        tf32 = row.get("tf32")
        if tf32 is not None and (type(tf32) is not bool or not decides(op)):
            raise ValueError(f"{op} has tf32={tf32!r}")
        return CallStep(op, names[0], names[1], row["about"], tf32)
    index, arguments = row["kernel"], []
    if type(index) is not int or not 0 <= index < len(kernels) or len(row["arguments"]) != len(kernels[index].types):
        raise ValueError(f"a step launches kernel {index} with {len(row['arguments'])} arguments")
    for argument, type_ in zip(row["arguments"], kernels[index].types, strict=True):
        if isinstance(argument, dict) != type_.startswith("*"):
            raise ValueError(f"an argument of type {type_} is {argument!r}")
        arguments.append({"value": _known(argument["value"], values)} if isinstance(argument, dict) else _checked(argument))
    if len(row["grid"]) != 3:
        raise ValueError(f"a grid is {row['grid']}")
    writes = tuple(_known(n, values) for n in row["writes"])
    return LaunchStep(index, tuple(map(_checked, row["grid"])), tuple(arguments), writes, row["about"])  # type: ignore[arg-type]


def _known(name: Any, values: Mapping[str, Any]) -> str:
    if name not in values:
        raise ValueError(f"value {name!r} is not described")
    return str(name)


def _numbers(row: dict[str, Any]) -> dict[str, int]:
    return {str(k): int(v) for k, v in row.items()}


def _checked(size: Any) -> Dim:
    """A size from the file: a number, or text that parses."""
    if type(size) is int:
        return size
    if not isinstance(size, str):
        raise ValueError(f"{size!r} is no size")
    sizes.parse(size)
    return size


def _size(size: Any) -> Any:
    return int(size) if isinstance(size, int) else size if isinstance(size, float) else str(size)


def _sizes(shape: Sequence[Any]) -> list[Any]:
    return [_size(s) for s in shape]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
