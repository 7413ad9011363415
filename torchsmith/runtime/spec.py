"""What an engine inside a program says of itself: the `spec` string of `torchsmith::execute_engine`."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith import sizes as shapes
from torchsmith.errors import EngineMismatch
from torchsmith.runtime.tensors import dtype_named
from torchsmith.sizes import Dim


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at an engine's edge. shape: sizes, or expressions over the spec's symbols."""

    shape: tuple[Dim, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class EngineSpec:
    """backend: its name in the registry. id: sha256 of the engine's bytes, in hex. device: the kind it runs on.

    Each symbol stands alone in some input's shape, so that the outputs' shapes follow from the inputs'.
    """

    backend: str
    id: str
    symbols: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str = "cpu"

    def to_json(self) -> str:
        """The spec string."""
        return json.dumps(
            {
                "backend": self.backend,
                "id": self.id,
                "symbols": list(self.symbols),
                "inputs": [_tensor_json(t) for t in self.inputs],
                "outputs": [_tensor_json(t) for t in self.outputs],
                "device": self.device,
            }
        )

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def from_json(text: str) -> EngineSpec:
        """Read a spec string. Raises EngineMismatch for text that is none."""
        try:
            data = json.loads(text)
            spec = EngineSpec(
                backend=_text(data["backend"], r"\w{1,64}"),
                id=_text(data["id"], "[0-9a-f]{64}"),
                symbols=tuple(_text(s, r"[A-Za-z_]\w{0,63}") for s in data["symbols"]),
                inputs=tuple(_tensor(t) for t in data["inputs"]),
                outputs=tuple(_tensor(t) for t in data["outputs"]),
                device=_text(data.get("device", "cpu"), "cpu|cuda"),
            )
            spec._check_symbols()
        except (ValueError, KeyError, TypeError) as error:
            raise EngineMismatch(f"an engine's spec cannot be read ({error}); compile the model again") from error
        return spec

    @staticmethod
    def of(
        backend: str, engine: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], device: str = "cpu"
    ) -> EngineSpec:
        """The spec of engine bytes. Raises ValueError where an output's symbol stands alone in no input."""
        used = dict.fromkeys(s for t in (*inputs, *outputs) for d in t.shape if isinstance(d, str) for s in shapes.parse(d).symbols)
        spec = EngineSpec(backend, hashlib.sha256(engine).hexdigest(), tuple(used), tuple(inputs), tuple(outputs), device)
        spec._check_symbols()
        return spec

    def output_shapes(self, inputs: Sequence[Tensor]) -> list[list[Any]]:
        """The outputs' sizes for these inputs: integers, or SymInts where the inputs have them."""
        values = shapes.solve_shapes([t.shape for t in self.inputs], [t.shape for t in inputs])
        return [[shapes.evaluate(dim, values) for dim in output.shape] for output in self.outputs]

    def _check_symbols(self) -> None:
        alone = {dim for t in self.inputs for dim in t.shape if isinstance(dim, str)}
        for t in (*self.inputs, *self.outputs):
            for dim in t.shape:
                for symbol in shapes.parse(dim).symbols if isinstance(dim, str) else ():
                    if symbol not in self.symbols or symbol not in alone:
                        raise ValueError(f"the symbol {symbol!r} of the size {dim!r} stands alone in no input's shape")


def _tensor_json(tensor: TensorSpec) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _tensor(data: dict[str, Any]) -> TensorSpec:
    for dim in data["shape"]:
        if type(dim) is str:
            shapes.parse(dim)
        elif type(dim) is not int or dim < 0:
            raise ValueError(f"{dim!r} is no size")
    return TensorSpec(tuple(data["shape"]), dtype_named(data["dtype"]))


def _text(value: Any, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} does not match {pattern}")
    return value
