"""A folder in which a failure can be run again, without the user's weights or data."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchsmith.config import Config
from torchsmith.errors import InternalError, TorchsmithError

_RUN = '''\
"""Runs the failing compilation again. Weights and inputs are random."""

import json
from pathlib import Path

import torch
import torchsmith
from torchsmith.debug.repro import reload

here = Path(__file__).parent
program = reload(here / "program.pt2")
options = json.loads((here / "options.json").read_text())
options["enabled_precisions"] = {getattr(torch, name) for name in options["enabled_precisions"]}
if options["calibrator"]:
    args, kwargs = program.example_inputs
    options["calibrator"] = [(*args, kwargs)]
torchsmith.compile(program, **options)
'''


@contextmanager
def failing(stage: str, program: ExportedProgram | None, config: Config) -> Iterator[None]:
    """Turn a bug inside into an InternalError that names a folder to run it again. program: what the stage was given, if any.

    Errors that tell the user something (torchsmith's own, of the system, interrupts) pass through.
    """
    try:
        yield
    except (TorchsmithError, OSError, MemoryError):
        raise
    except Exception as bug:
        folder = write(stage, program, config, bug)
        again = "; its run.py runs the failure again." if (folder / "run.py").exists() else "."
        raise InternalError(
            f"the {stage} stage failed with {type(bug).__name__}: {bug}\nThis is a bug of torchsmith. Please report it with the "
            f"folder {folder}, which has the program without its weights, the options, the versions and the traceback{again}"
        ) from bug


def write(stage: str, program: ExportedProgram | None, config: Config, bug: BaseException) -> Path:
    """Make the folder, in the system's place for temporary files. Interrupted, it leaves none."""
    folder = Path(tempfile.mkdtemp(prefix=f"torchsmith-repro-{stage}-"))
    try:
        (folder / "traceback.txt").write_text(
            "".join(traceback.format_exception(type(bug), bug, bug.__traceback__)), encoding="utf-8"
        )
        (folder / "versions.txt").write_text(_versions(), encoding="utf-8")
        options = _options(config)
        # only this stage still needs one; after it, ranges are in the program
        options["calibrator"] = "the example inputs" if stage == "quantize" and config.quantize.calibrator is not None else None
        (folder / "options.json").write_text(json.dumps(options, indent=2), encoding="utf-8")
        if program is not None:
            from torchsmith.debug.programs import to_text

            (folder / "program.txt").write_text(to_text(program, with_sources=True), encoding="utf-8")
            _save(program, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _save(program: ExportedProgram, folder: Path) -> None:
    try:
        torch.export.save(without_weights(program), folder / "program.pt2")
    except Exception as error:  # nothing here may hide the failure that is being told; the text of the program is there
        (folder / "program.pt2").unlink(missing_ok=True)
        (folder / "not-saved.txt").write_text(f"torch.export.save: {type(error).__name__}: {error}\n", encoding="utf-8")
    else:
        (folder / "run.py").write_text(_RUN, encoding="utf-8")


def without_weights(program: ExportedProgram) -> ExportedProgram:
    """The program with zeros for its parameters, buffers and example inputs."""
    example = program.example_inputs
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict={name: _zeros(tensor) for name, tensor in program.state_dict.items()},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=None if example is None else pytree.tree_map_only(Tensor, _zeros, example),
        constants={name: _zeros(value) if isinstance(value, Tensor) else value for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )


def _zeros(tensor: Tensor) -> Tensor:
    zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.nn.Parameter(zeros, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else zeros


def reload(file: str | os.PathLike[str]) -> ExportedProgram:
    """Read a program that `write` saved, with random weights: normal ones where they are floating, else zeros."""
    program = torch.export.load(file)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*program.state_dict.values(), *program.constants.values()):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)  # positive, as variances must be
    return program


def _options(config: Config) -> dict[str, Any]:
    """The flat options that `torchsmith.compile` takes, as data."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat.update(
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            if dataclasses.is_dataclass(value) and not isinstance(value, type)
            else {field.name: value}
        )
    return {name: _as_data(value) for name, value in flat.items() if name != "calibrator"}


def _as_data(value: Any) -> Any:
    """None of what only the user's program has, such as a metric."""
    if isinstance(value, (frozenset, set)):
        return sorted(map(_as_data, value))
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _versions() -> str:
    from importlib.metadata import distributions

    from torchsmith.target import this_cpu

    told = ("torch", "triton", "openvino", "sympy", "torchsmith")
    packages = sorted({f"{d.name} {d.version}" for d in distributions() if d.name in told})
    return "\n".join([f"Python {sys.version}", platform.platform(), str(this_cpu()), *packages]) + "\n"
