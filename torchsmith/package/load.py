"""Read a package back, without compiling anything and without unpickling anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchsmith import backends
from torchsmith.errors import BackendUnavailable, EngineMismatch, PackageError
from torchsmith.package.archive import SCRIPT, Archive, read_archive
from torchsmith.package.plans import plan_from_json
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.plan import Plan, TensorInput
from torchsmith.runtime.tensors import dtype_named, to_bytes
from torchsmith.target import Target

if TYPE_CHECKING:
    from torchsmith.runtime.hybrid import HybridScript


def load(path: str | os.PathLike[str]) -> CompiledModule | HybridScript:
    """The module that `torchsmith.save` wrote, ready to be called.

    Every byte is held to its checksum before anything is made of it, nothing is unpickled, and no code or name of a module in
    the file is run or imported; of classes among inputs and outputs, only transformers' are looked for. A file is still as
    good as who made it: its engines run as they are. The TorchScript of a module that was compiled in parts is read by
    `torch.jit.load`, whose reader of pickles is not Python's: it makes TorchScript's types, and imports nothing. TorchScript
    that touches files, or calls operators and classes that are not PyTorch's, is refused before that.

    Raises PackageError for a file that is missing, cut off, altered, foreign or of a newer format; EngineMismatch where its
    engines are for another device; BackendUnavailable.
    """
    archive = read_archive(os.fspath(path))
    try:
        return _script(archive) if "parts" in archive.header else _module(archive)
    except (PackageError, EngineMismatch, BackendUnavailable) as error:
        raise type(error)(f"{archive.path}: {error}") from error


def _module(archive: Archive) -> CompiledModule:
    plan = plan_from_json(archive.header.get("plan"))
    report = _report(archive)
    check_target(plan, archive.header.get("target"))
    tensors = _tensors(plan, archive)
    return CompiledModule.from_plan(plan, tensors, report, lambda: _program(archive, tensors))


def _script(archive: Archive) -> HybridScript:
    from torchsmith.package.scripts import script_from_bytes
    from torchsmith.runtime.hybrid import CompiledPart, HybridScript

    report = _report(archive)
    parts = [CompiledPart(path, _module(part)) for path, part in archive.parts()]
    if SCRIPT not in archive.entries:
        raise PackageError("it has no TorchScript; save the module again")
    script = script_from_bytes(to_bytes(archive.entries[SCRIPT]))
    paths = {name for name, _ in script.named_modules()}
    if strange := [part.path for part in parts if part.path not in paths]:
        raise PackageError(f"its TorchScript has no submodule {strange[0]!r}; save the module again")
    return HybridScript(script, parts, report)


def _report(archive: Archive) -> dict[str, Any]:
    report = archive.header.get("report")
    if not isinstance(report, dict):
        raise PackageError("its header has no report; save the module again")
    return report


def _program(archive: Archive, tensors: Mapping[str, Tensor]) -> Any:
    from torchsmith.package.program import program_of  # torch.export's reader takes a second to import

    return program_of(archive, tensors)


def check_target(plan: Plan, data: Any) -> None:
    """Raises EngineMismatch where this machine lacks a device of the plan's, or its engines are for another kind of it."""
    try:
        built = Target.from_json(data) if data is not None else None
    except (KeyError, TypeError) as error:
        raise PackageError(f"its header's target cannot be read ({error}); save the module again") from error
    with_engines = {call.device.type for call in plan.engine_calls}
    for device in sorted(with_engines | {input_.device.type for input_ in plan.inputs if isinstance(input_, TensorInput)}):
        try:
            here = backends.target_of(device)
        except BackendUnavailable as error:
            raise EngineMismatch(
                f"built for {built or device}, and this machine has no such device; compile the model for this one"
            ) from error
        if device in with_engines and built is not None and built.device == device and built.arch != here.arch:
            raise EngineMismatch(
                f"built for {built}, and this machine has {here}; compile the model here, or load it on a machine of its kind"
            )


def _tensors(plan: Plan, archive: Archive) -> dict[str, Tensor]:
    """The plan's tensors, without copying; engines among them, whose bytes must be what their specs say."""
    try:
        table, checked = archive.header["tensors"], archive.header["entries"]
        for call in plan.engine_calls:
            if checked[table[call.constant]["entry"]][1] != call.spec.id:
                raise PackageError(f"the engine {call.constant!r} is not the one that its spec names; save the module again")
        names = {*plan.tensors, *(call.constant for call in plan.engine_calls)}
        return {name: _tensor(table[name], archive.entries) for name in names}
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise PackageError(f"its tensors cannot be read ({type(error).__name__}: {error}); save the module again") from error


def _tensor(how: Mapping[str, Any], entries: Mapping[str, Tensor]) -> Tensor:
    data, dtype, shape = entries[how["entry"]], dtype_named(how["dtype"]), how["shape"]
    if not data.numel():
        return torch.zeros(shape, dtype=dtype, device=how["device"])
    return data.view(dtype).as_strided(shape, how["stride"], how["offset"]).to(how["device"])
