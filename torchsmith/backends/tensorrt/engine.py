"""A TensorRT engine as bytes, and back: a safetensors file with what TensorRT wrote, and beside it what we have to know of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchsmith import sizes
from torchsmith.backends.tensorrt.emit import edge_names
from torchsmith.backends.tensorrt.library import is_rtx, trt
from torchsmith.errors import EngineMismatch
from torchsmith.ir.graph import Graph, Value
from torchsmith.target import Target

FORMAT = 1


@dataclass(frozen=True)
class Edge:
    """An input or output. shape: sizes as numbers or text."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Layer:
    """A layer of the network as it was before TensorRT fused it. name: of our node, with the user's line. outputs: types."""

    name: str
    kind: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """library: "TensorRT" or "TensorRT-RTX", in `version`. plan: TensorRT's own bytes.

    host_code: whether it brings a part of TensorRT with it, as engines do that later versions can run.
    """

    library: str
    version: str
    target: Target
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    layers: tuple[Layer, ...]
    plan: Tensor
    host_code: bool


def pack(plan: bytes, graph: Graph, target: Target, layers: Sequence[Layer], host_code: bool = False) -> bytes:
    names = edge_names(graph)
    header = {
        "format": FORMAT,
        "library": "TensorRT-RTX" if is_rtx() else "TensorRT",
        "version": str(trt().__version__),
        "target": target.to_json(),
        "host_code": host_code,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "inputs": [_edge(name, value) for name, value in zip(names[0], graph.inputs, strict=True)],
        "outputs": [_edge(name, value) for name, value in zip(names[1], graph.outputs, strict=True)],
        "layers": [[layer.name, layer.kind, list(layer.outputs)] for layer in layers],
    }
    tensor = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
    return bytes(save_tensors({"plan": tensor}, metadata={"engine": json.dumps(header)}))


def parse(data: bytes) -> Engine:
    """Raises EngineMismatch for bytes that are damaged or no engine, or an engine of a newer format."""
    try:
        plan = load_tensors(data)["plan"]
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["engine"])
        if header["format"] > FORMAT:
            raise EngineMismatch(
                f"the engine has format {header['format']}, and this torchsmith reads up to {FORMAT}; update torchsmith"
            )
        if plan.dtype != torch.uint8 or hashlib.sha256(plan.numpy().tobytes()).hexdigest() != header["sha256"]:
            raise ValueError("its checksum is another")
        return Engine(
            library=str(header["library"]),
            version=str(header["version"]),
            target=Target.from_json(header["target"]),
            inputs=tuple(map(_read_edge, header["inputs"])),
            outputs=tuple(map(_read_edge, header["outputs"])),
            layers=tuple(Layer(str(name), str(kind), tuple(map(str, out))) for name, kind, out in header["layers"]),
            plan=plan,
            host_code=header["host_code"] is True,
        )
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as damage:
        raise EngineMismatch(
            f"these bytes are no tensorrt engine ({type(damage).__name__}: {damage}); compile the model again"
        ) from damage


def layers_of(network: Any) -> list[Layer]:
    """The network's layers; constants are left out."""
    found = []
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type != trt().LayerType.CONSTANT:
            outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
            found.append(Layer(layer.name, layer.type.name.lower(), tuple(_described(t) for t in outputs)))
    return found


def _described(tensor: Any) -> str:
    sizes_ = ", ".join("?" if n < 0 else str(n) for n in tensor.shape)
    return f"{tensor.dtype.name.lower()}[{sizes_}]"


def _edge(name: str, value: Value) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in value.type.shape]
    return {"name": name, "shape": shape, "dtype": str(value.type.dtype).removeprefix("torch.")}


def _read_edge(row: dict[str, Any]) -> Edge:
    dtype = getattr(torch, str(row["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{row['dtype']!r} is no dtype")
    for size in row["shape"]:
        if type(size) is not int:
            sizes.parse(size)
    return Edge(str(row["name"]), tuple(row["shape"]), dtype)
