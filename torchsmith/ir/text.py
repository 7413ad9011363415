"""Graphs as text for people, and as data for files."""

from __future__ import annotations

import json
import math
from typing import Any

import sympy
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchsmith.ir.dim import parse
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.types import TensorType


def to_text(graph: Graph) -> str:
    """One line a node: `%out: type = Op(attributes)(inputs)  # origin`."""
    lines = [f"graph({', '.join(map(repr, graph.inputs))})"]
    for name, (low, high) in graph.ranges.items():
        lines.append(f"  where {low} <= {name}" + ("" if high is None else f" <= {high}"))
    for node in graph.nodes:
        outputs, inputs = ", ".join(map(repr, node.outputs)), ", ".join(f"%{v.name}" for v in node.inputs)
        lines.append(f"  {outputs} = {node.op}({inputs})" + (f"  # {node.origin}" if node.origin else ""))
    lines.append(f"  return {', '.join(f'%{v.name}' for v in graph.outputs)}")
    return "\n".join(lines)


def to_bytes(graph: Graph) -> bytes:
    """The graph as a safetensors file: constants as its tensors, the rest as JSON in its metadata."""
    data = {
        "inputs": [[v.name, *_type_out(v.type)] for v in graph.inputs],
        "ranges": {name: list(limits) for name, limits in graph.ranges.items()},
        "nodes": [
            {
                "op": type(node.op).__name__,
                "attributes": {name: attribute_out(value) for name, value in node.op.attributes().items()},
                "inputs": [v.name for v in node.inputs],
                "outputs": [[v.name, *_type_out(v.type)] for v in node.outputs],
                "origin": node.origin,
            }
            for node in graph.nodes
        ],
        "outputs": [v.name for v in graph.outputs],
    }
    tensors = {value.name: tensor.contiguous().clone() for value, tensor in graph.constants.items()}
    return bytes(save_tensors(tensors, metadata={"graph": json.dumps(data)}))


def from_bytes(data: bytes) -> Graph:
    """Read back what `to_bytes` wrote. The ops in it must have been imported. Raises ValueError for bytes that are no graph."""
    try:
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        return _graph_in(json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["graph"]), tensors)
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"these bytes are no graph: {type(error).__name__}: {error}") from error


def _graph_in(graph: dict[str, Any], tensors: dict[str, Tensor]) -> Graph:
    constants = {Value(name, TensorType(tuple(t.shape), t.dtype)): t for name, t in tensors.items()}
    inputs = tuple(Value(name, _type_in(*type)) for name, *type in graph["inputs"])
    values = {v.name: v for v in (*constants, *inputs)}
    nodes = []
    for n in graph["nodes"]:
        op = REGISTRY[n["op"]](**{name: attribute_in(value) for name, value in n["attributes"].items()})
        outputs = tuple(Value(name, _type_in(*type)) for name, *type in n["outputs"])
        nodes.append(Node(op, tuple(values[name] for name in n["inputs"]), outputs, n["origin"]))
        values.update({v.name: v for v in outputs})
    ranges = {name: (low, high) for name, (low, high) in graph["ranges"].items()}
    return Graph(inputs, tuple(nodes), tuple(values[name] for name in graph["outputs"]), constants, ranges)


def _type_out(type: TensorType) -> list[Any]:
    return [[size if isinstance(size, int) else str(size) for size in type.shape], str(type.dtype).removeprefix("torch.")]


def _type_in(shape: list[int | str], dtype: str) -> TensorType:
    return TensorType(tuple(s if isinstance(s, int) else parse(s) for s in shape), _dtype_in(dtype))


def _dtype_in(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


def attribute_out(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [attribute_out(v) for v in value]
    if isinstance(value, sympy.Expr):
        return {"size": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    assert value is None or isinstance(value, (bool, int, float, str)), f"attribute {value!r} cannot be written as data"
    return value


def attribute_in(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(attribute_in(v) for v in value)
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        return {"size": parse, "dtype": _dtype_in, "float": float}[kind](text)
    return value
