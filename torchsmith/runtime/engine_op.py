"""The op that carries an engine inside an exported program:

    torchsmith::execute_engine(Tensor[] inputs, Tensor engine, str spec) -> Tensor[]

engine: the engine's bytes, 1-D uint8. spec: see `EngineSpec`. Importing this file registers the op, and that is all that a
program needs which `torch.export.load` opened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import InvalidInput
from torchsmith.ops import float8  # noqa: F401 - registers an op that a program may run in PyTorch
from torchsmith.runtime.engines import engine_of
from torchsmith.runtime.spec import EngineSpec

NAME = "torchsmith::execute_engine"

_library: Any = torch.library.Library("torchsmith", "DEF")  # type: ignore[no-untyped-call]
_library.define("execute_engine(Tensor[] inputs, Tensor engine, str spec) -> Tensor[]")


def execute_engine(inputs: list[Tensor], engine: Tensor, spec: str) -> list[Tensor]:
    """Run the engine on CPU or CUDA tensors."""
    read = EngineSpec.from_json(spec)
    check_inputs(read, inputs)
    device = inputs[0].device if inputs else torch.device(read.device)
    if read.device == "cuda" and device.type == "cpu":
        raise InvalidInput(
            f"a {read.backend} engine runs on a GPU, and its inputs are on the CPU; move the program there with "
            "torch.export.passes.move_to_device_pass(program, 'cuda')"
        )
    return engine_of(read, engine, device).runner(inputs)


def outputs_of(inputs: list[Tensor], engine: Tensor, spec: str) -> list[Tensor]:
    """What the engine gives, without its values: shapes from the spec's expressions over the inputs' sizes."""
    read = EngineSpec.from_json(spec)
    check_inputs(read, inputs)
    device = inputs[0].device if inputs else torch.device(read.device)
    shapes = read.output_shapes(inputs)
    return [torch.empty(shape, dtype=out.dtype, device=device) for shape, out in zip(shapes, read.outputs, strict=True)]


def check_inputs(spec: EngineSpec, inputs: list[Tensor]) -> None:
    """Number, ranks and dtypes: what no shape expression says. Raises InvalidInput."""
    if len(inputs) != len(spec.inputs):
        raise InvalidInput(f"a {spec.backend} engine takes {len(spec.inputs)} tensors, and got {len(inputs)}")
    for number, (given, wanted) in enumerate(zip(inputs, spec.inputs, strict=True)):
        if given.dtype != wanted.dtype or given.dim() != len(wanted.shape):
            raise InvalidInput(
                f"input {number} of a {spec.backend} engine is {given.dtype} with {given.dim()} dimensions; "
                f"it takes {wanted.dtype} of shape ({', '.join(map(str, wanted.shape))})"
            )


_library.impl("execute_engine", execute_engine, "CPU")
_library.impl("execute_engine", execute_engine, "CUDA")
torch.library.register_fake(NAME, outputs_of, lib=_library)
