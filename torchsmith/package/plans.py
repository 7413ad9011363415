"""A plan as plain data, and back. Reading makes only what it knows: numbers, texts, registered ops, dtypes."""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from torchsmith import sizes as shapes
from torchsmith.errors import PackageError
from torchsmith.runtime.control import HIGHER_ORDER, SIZES
from torchsmith.runtime.plan import (
    OPAQUE,
    REQUIRED,
    Block,
    Call,
    ConstantInput,
    EngineCall,
    Input,
    Parameter,
    Plan,
    Ref,
    SizeInput,
    TensorInput,
    Write,
)
from torchsmith.runtime.spec import EngineSpec
from torchsmith.runtime.structure import Structure
from torchsmith.runtime.tensors import dtype_named
from torchsmith.runtime.verify import verify

_OP = re.compile(r"([A-Za-z_]\w*)::(\w+)\.(\w+)")
_NO_BUSINESS = {"aten::from_file", "aten::save"}  # they touch files
_TARGETS: dict[str, dict[str, Callable[..., Any]]] = {"size": SIZES, "control": HIGHER_ORDER}
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_LAYOUTS = ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Raises PackageError where the inputs or outputs have a class that no other process can find."""
    return {
        "inputs": [_input_to_json(i) for i in plan.inputs],
        "tensors": dict(plan.tensors),
        "body": _block_to_json(plan.body),
        "writes": [[w.value.index, w.into] for w in plan.writes],
        "outputs": [_to_json(o) for o in plan.outputs],
        "nested_inputs": plan.nested_inputs.to_json(),
        "nested_output": plan.nested_output.to_json(),
        "symbols": {name: list(bounds) for name, bounds in plan.symbols.items()},
        "relations": [list(r) for r in plan.relations],
        "parameters": [_parameter_to_json(p) for p in plan.parameters],
    }


def plan_from_json(data: Any) -> Plan:
    """Raises PackageError for anything but a plan, and for ops that this process does not know."""
    try:
        plan = Plan(
            inputs=tuple(_input(i) for i in data["inputs"]),
            tensors={_str(name): _number(value) for name, value in data["tensors"].items()},
            body=_block(data["body"]),
            writes=tuple(Write(Ref(_number(value)), into if type(into) is int else _str(into)) for value, into in data["writes"]),
            outputs=tuple(_from_json(o) for o in data["outputs"]),
            nested_inputs=Structure.from_json(data["nested_inputs"]),
            nested_output=Structure.from_json(data["nested_output"]),
            symbols={
                _size_text(name): (_number(low), None if high is None else _number(high))
                for name, (low, high) in data["symbols"].items()
            },
            relations=tuple((_size_text(left), _size_text(right)) for left, right in data["relations"]),
            parameters=tuple(_parameter(p) for p in data["parameters"]),
        )
        verify(plan)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError, RuntimeError) as error:
        raise PackageError(f"its plan cannot be read ({type(error).__name__}: {error}); save the module again") from error
    return plan


def _input_to_json(input_: Input) -> dict[str, Any]:
    if isinstance(input_, TensorInput):
        return {"name": input_.name, "shape": list(input_.shape), "dtype": str(input_.dtype)[6:], "device": str(input_.device)}
    return (
        {"name": input_.name, "size": input_.size}
        if isinstance(input_, SizeInput)
        else {"name": input_.name, "is": _to_json(input_.value)}
    )


def _input(data: dict[str, Any]) -> Input:
    name = _str(data["name"])
    if "size" in data:
        return SizeInput(name, _dim(data["size"]))
    if "is" in data:
        value = _from_json(data["is"])
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{value!r} is no constant input")
        return ConstantInput(name, value)
    return TensorInput(name, tuple(map(_dim, data["shape"])), dtype_named(data["dtype"]), torch.device(_str(data["device"])))


def _block_to_json(block: Block) -> dict[str, Any]:
    return {"inputs": list(block.inputs), "steps": [_step_to_json(s) for s in block.steps], "result": _to_json(block.result)}


def _block(data: dict[str, Any]) -> Block:
    return Block(tuple(map(_number, data["inputs"])), tuple(map(_step, data["steps"])), _from_json(data["result"]))


def _step_to_json(step: Call | EngineCall) -> dict[str, Any]:
    if isinstance(step, EngineCall):
        return {
            "engine": step.constant,
            "spec": step.spec.to_json(),
            "inputs": [ref.index for ref in step.inputs],
            "out": step.out,
            "device": str(step.device),
        }
    return {
        **_target_to_json(step.target),
        "args": [_to_json(arg) for arg in step.args],
        "kwargs": {name: _to_json(arg) for name, arg in step.kwargs.items()},
        "out": step.out,
    }


def _step(data: dict[str, Any]) -> Call | EngineCall:
    out = _number(data["out"])
    if "engine" in data:
        inputs = tuple(Ref(_number(i)) for i in data["inputs"])
        return EngineCall(
            EngineSpec.from_json(_str(data["spec"])), _str(data["engine"]), inputs, out, torch.device(_str(data["device"]))
        )
    kwargs = {_identifier(name): _from_json(arg) for name, arg in data["kwargs"].items()}
    return Call(_target(data), tuple(_from_json(arg) for arg in data["args"]), kwargs, out)


def _target_to_json(target: Any) -> dict[str, str]:
    if isinstance(target, OpOverload):
        return {"op": f"{target._schema.name}.{target._overloadname}"}
    for kind, table in _TARGETS.items():
        for name, function in table.items():
            if function is target:
                return {kind: name}
    raise AssertionError(target)  # extract.py lets no other target through


def _target(data: dict[str, Any]) -> Callable[..., Any]:
    for kind, table in _TARGETS.items():
        if kind in data:
            return table[data[kind]]
    return op_named(data["op"])


def op_named(name: str) -> OpOverload:
    """The op of a name such as "aten::add.Tensor". Raises PackageError where there is none, or it is no op for a package."""
    match = _OP.fullmatch(_str(name))
    namespace, short, overload = match.groups() if match else ("", "", "")
    if not match or namespace == "prim" or f"{namespace}::{short}" in _NO_BUSINESS:
        raise PackageError(f"its plan calls {name!r}, which no package may")
    packet = getattr(getattr(torch.ops, namespace, None), short, None)
    op = getattr(packet, overload, None) if isinstance(packet, OpOverloadPacket) else None
    if not isinstance(op, OpOverload):
        what = f"which torch {torch.__version__} does not have; load it with the torch that saved it"
        if namespace not in ("aten", "prims", "torchsmith"):
            what = f"a custom op that is not registered in this process; import the module that defines {namespace}::{short} first"
        raise PackageError(f"the model calls {name!r}, {what}")
    return op


def _to_json(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Ref):
        return {"ref": value.index}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, Block):
        return {"block": _block_to_json(value)}
    if isinstance(value, (float, torch.device)):
        return {type(value).__name__: str(value)}
    if isinstance(value, complex):
        return {"complex": [_to_json(value.real), _to_json(value.imag)]}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    raise PackageError(f"the model has the constant {value!r} of {type(value)}, which no package can carry")


def _from_json(data: Any) -> Any:
    if isinstance(data, list):
        return [_from_json(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    return _READERS[kind](value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "ref": lambda v: Ref(_number(v)),
    "tuple": lambda v: tuple(_from_json(item) for item in v),
    "block": lambda v: _block(v),
    "float": lambda v: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[v],
    "complex": lambda v: complex(*(_from_json(part) for part in v)),
    "device": lambda v: torch.device(_str(v)),
    "dtype": lambda v: dtype_named(v),
    "layout": lambda v: getattr(torch, _LAYOUTS[_LAYOUTS.index(v)]),
    "memory_format": lambda v: getattr(torch, _MEMORY_FORMATS[_MEMORY_FORMATS.index(v)]),
}


def _parameter_to_json(parameter: Parameter) -> list[Any]:
    default = parameter.default
    return [parameter.name, parameter.kind, {"no": default.name} if default in (REQUIRED, OPAQUE) else {"is": _to_json(default)}]


def _parameter(data: list[Any]) -> Parameter:
    name, kind, default = data
    if kind not in inspect._ParameterKind.__members__:
        raise ValueError(f"{kind!r} is no kind of parameter")
    value = {"REQUIRED": REQUIRED, "OPAQUE": OPAQUE}[default["no"]] if "no" in default else _from_json(default["is"])
    return Parameter(_identifier(name), kind, value)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a value")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _identifier(value: Any) -> str:
    if not _str(value).isidentifier() or keyword.iskeyword(value):
        raise ValueError(f"{value!r} is no name")
    return str(value)


def _dim(value: Any) -> int | str:
    return _number(value) if type(value) is int else _size_text(value)


def _size_text(value: Any) -> str:
    return shapes.parse(_str(value)).text
