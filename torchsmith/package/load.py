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
from torchsmith.runtime.places import concrete, moved_program, unnumbered
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

    Engines for a GPU where there is none are not loaded: the module can be looked at, and calling it raises EngineMismatch. What
    was built without a GPU goes to the current one.

    Raises PackageError for a file that is missing, cut off, altered, foreign or of a newer format; EngineMismatch where its
    engines are for another kind of the devices that are here; BackendUnavailable.
    """
    archive = read_archive(os.fspath(path))
    try:
        return _script(archive) if "parts" in archive.header else _module(archive)
    except (PackageError, EngineMismatch, BackendUnavailable) as error:
        raise type(error)(f"{archive.path}: {error}") from error


def _module(archive: Archive, may_be_missing: bool = True) -> CompiledModule:
    plan = plan_from_json(archive.header.get("plan"))
    report, built = _report(archive), _target(archive.header.get("target"))
    missing = missing_device(plan, built) if may_be_missing else ""
    if not missing:
        check_target(plan, built)
    tensors = _tensors(plan, archive, here=not missing)
    return CompiledModule.from_plan(plan, tensors, report, lambda: _program(archive, tensors, plan, bool(missing)), missing)


def _script(archive: Archive) -> HybridScript:
    from torchsmith.package.scripts import script_from_bytes
    from torchsmith.runtime.hybrid import CompiledPart, HybridScript

    report = _report(archive)
    parts = [CompiledPart(path, _module(part, may_be_missing=False)) for path, part in archive.parts()]
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


def _program(archive: Archive, tensors: Mapping[str, Tensor], plan: Plan, missing: bool) -> Any:
    from torchsmith.package.program import program_of  # torch.export's reader takes a second to import

    program = program_of(archive, tensors)
    if missing or not unnumbered(plan):
        return program
    return moved_program(program, concrete(torch.device("cuda")), [call.constant for call in plan.engine_calls])


def _target(data: Any) -> Target | None:
    try:
        return Target.from_json(data) if data is not None else None
    except (KeyError, TypeError) as error:
        raise PackageError(f"its header's target cannot be read ({error}); save the module again") from error


def missing_device(plan: Plan, built: Target | None) -> str:
    """Why the plan runs nowhere on this machine, which lacks a kind of device that it is for; empty where it does not."""
    for device in _devices(plan):
        try:
            backends.target_of(device)
        except BackendUnavailable:
            return f"built for {built or device}, and this machine has no such device"
    return ""


def check_target(plan: Plan, built: Target | None) -> None:
    """Raises EngineMismatch where this machine lacks a device of the plan's, or its engines are for another kind of it."""
    if why := missing_device(plan, built):
        raise EngineMismatch(f"{why}; load it on one that has, or compile the model for this one")
    for device in sorted({call.device.type for call in plan.engine_calls}):
        here = backends.target_of(device)
        if built is not None and built.device == device and not built.runs_on(here):
            raise EngineMismatch(
                f"built for {built}, and this machine has {here}; compile the model here, or load it on a machine of its kind"
            )


def _devices(plan: Plan) -> list[str]:
    inputs = {input_.device.type for input_ in plan.inputs if isinstance(input_, TensorInput)}
    return sorted(inputs | {call.device.type for call in plan.engine_calls})


def _tensors(plan: Plan, archive: Archive, here: bool) -> dict[str, Tensor]:
    """The plan's tensors, without copying; engines among them, whose bytes must be what their specs say.

    here: whether their devices are; else they stay on the CPU.
    """
    try:
        table, checked = archive.header["tensors"], archive.header["entries"]
        for call in plan.engine_calls:
            if checked[table[call.constant]["entry"]][1] != call.spec.id:
                raise PackageError(f"the engine {call.constant!r} is not the one that its spec names; save the module again")
        names = {*plan.tensors, *(call.constant for call in plan.engine_calls)}
        return {name: _tensor(table[name], archive.entries, here) for name in names}
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise PackageError(f"its tensors cannot be read ({type(error).__name__}: {error}); save the module again") from error


def _tensor(how: Mapping[str, Any], entries: Mapping[str, Tensor], here: bool) -> Tensor:
    data, dtype, shape = entries[how["entry"]], dtype_named(how["dtype"]), how["shape"]
    device = torch.device(how["device"]) if here else torch.device("cpu")
    if not data.numel():
        return torch.zeros(shape, dtype=dtype, device=device)
    return data.view(dtype).as_strided(shape, how["stride"], how["offset"]).to(device)
