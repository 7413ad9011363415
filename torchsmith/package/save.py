"""Write a compiled module as one file: whole, or not at all."""

from __future__ import annotations

import copy
import errno
import hashlib
import importlib.metadata
import io
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchsmith.errors import PackageError
from torchsmith.package.archive import ENTRIES, FORMAT, HEADER, PART, SCRIPT
from torchsmith.package.plans import plan_to_json
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.finished import FinishedModule
from torchsmith.version import __version__

if TYPE_CHECKING:
    from torchsmith.runtime.hybrid import HybridScript


def save(module: CompiledModule | HybridScript, path: str | os.PathLike[str]) -> None:
    """Write a compiled module to one file, with its weights and engines. `torchsmith.load` gives it back.

    The file also opens with `torch.export.load`, once torchsmith is imported; that wants the suffix `.pt2`, which is not added.
    The inputs that the model was compiled with are not kept. A file of this name is replaced once the new one is complete.
    A `HybridScript` is saved with its TorchScript and its state as it is now; such a file opens with `torchsmith.load` alone.

    Raises PackageError where the module or its classes cannot be saved, or the file cannot be written.
    """
    if not isinstance(module, FinishedModule):
        raise PackageError(
            f"save() takes what torchsmith.compile() returned; it got {type(module).__name__}; compile the model first"
        )
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise PackageError(f"{os.fspath(path)}: the folder {folder} does not exist; create it first")
    if os.path.isdir(target):
        raise PackageError(f"{os.fspath(path)}: this is a folder; name a file, such as model.pt2")
    _write(target, _contents(module) if isinstance(module, CompiledModule) else _contents_of_script(module))


def _contents_of_script(module: Any) -> memoryview:
    """The TorchScript, and the contents of every part's own package in a folder of its own."""
    from torchsmith.package.scripts import script_to_bytes

    entries, parts, versions = {SCRIPT: script_to_bytes(module.script)}, [], {}
    for number, (path, part) in enumerate(module.parts):
        with zipfile.ZipFile(io.BytesIO(_contents(part))) as archive:
            inside = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
        header = json.loads(inside.pop(HEADER))
        versions.update(header["backends"])
        parts.append({"path": path, "header": {name: header[name] for name in ("target", "plan", "tensors", "report")}})
        entries.update({PART.format(number) + name: data for name, data in inside.items()})
    header = {
        "format": FORMAT,
        "torchsmith": __version__,
        "torch": str(torch.__version__),
        "backends": versions,
        "target": module.report["target"],
        "report": module.report,
        "parts": parts,
        "entries": {name: _size_and_digest(data) for name, data in entries.items()},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**entries, HEADER: json.dumps(header).encode()}.items():
            archive.writestr(f"archive/{name}", data)
    return file.getbuffer()


def _contents(module: CompiledModule) -> memoryview:
    # In memory first: torch's writer ends the process where its file cannot be written.
    header: dict[str, Any] = {
        "format": FORMAT,
        "torchsmith": __version__,
        "torch": str(torch.__version__),
        "backends": {call.spec.backend: _version(call.spec.backend) for call in module.plan.engine_calls},
        "target": module.report.get("target"),
        "plan": plan_to_json(module.plan),
        "report": module.report,
    }
    program, file = _saveable(module.program), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)  # of strided weights, which it then saves whole
        torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].split("/")[0] + "/"
        names = [name.removeprefix(root) for name in archive.namelist()]
        if unknown := [name for name in names if not ENTRIES.fullmatch(name)]:
            raise PackageError(
                f"the program has data that only a pickle could carry ({unknown[0]}); torchsmith does not save those"
            )
        header["entries"] = {name: _size_and_digest(archive.read(root + name)) for name in names}
        header["tensors"] = _tensor_table(module, program, lambda name: json.loads(archive.read(root + name)))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        try:
            archive.writestr(root + HEADER, json.dumps(header))
        except TypeError as error:
            raise PackageError(f"the module's report is not plain data ({error}), and cannot be saved") from error
    return file.getbuffer()


def _saveable(program: Any) -> Any:
    """The program with tensors that fill their storages, and without example inputs, which would be pickled."""
    own: dict[tuple[Any, ...], Tensor] = {}

    def whole(value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise PackageError(
                f"the program has a constant of {type(value)}, which only a pickle could carry; torchsmith does not save those"
            )
        if value.untyped_storage().nbytes() == value.nbytes:
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)  # tied weights stay tied
        if key not in own:
            clone = value.detach().clone()
            own[key] = torch.nn.Parameter(clone, value.requires_grad) if isinstance(value, torch.nn.Parameter) else clone
        return own[key]

    program = copy.copy(program)
    program._state_dict = {name: whole(value) for name, value in program.state_dict.items()}
    program._constants = {name: whole(value) for name, value in program.constants.items()}
    program._example_inputs = None
    return program


def _size_and_digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def _tensor_table(module: CompiledModule, program: Any, read: Callable[[str], Any]) -> dict[str, Any]:
    """Which entry holds each tensor that the plan names, and how."""
    table: dict[str, Any] = {}
    names = {*module.plan.tensors, *(call.constant for call in module.plan.engine_calls)}
    for folder, kind, tensors in (
        ("data/weights", "weights", program.state_dict),
        ("data/constants", "constants", program.constants),
    ):
        config = read(f"{folder}/model_{kind}_config.json")["config"]
        for name in names & config.keys() & tensors.keys():
            tensor = tensors[name]
            if config[name]["use_pickle"]:
                raise PackageError(
                    f"{name!r} is a {type(tensor).__name__}, which only a pickle could carry; torchsmith does not save those"
                )
            table[name] = {
                "entry": f"{folder}/{config[name]['path_name']}",
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "offset": tensor.storage_offset(),
                # of a module that was built for elsewhere, what stays in PyTorch goes there with its engines
                "device": str(module.device if module.missing and name in module.plan.tensors else tensor.device),
            }
    assert names == table.keys(), names ^ table.keys()
    return table


def _version(backend: str) -> str | None:
    try:
        return importlib.metadata.version(backend)
    except importlib.metadata.PackageNotFoundError:  # a backend of our own
        return None


def _write(target: str, contents: memoryview) -> None:
    """All of it under a passing name beside the target, onto the disk, then into its place."""
    folder, name = os.path.split(target)
    passing = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(passing, "xb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(passing, target)
        except BaseException:
            if os.path.exists(passing):
                os.unlink(passing)
            raise
    except OSError as error:
        size = f"{contents.nbytes / 2**20:.1f} MiB"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = (
            f"there is no room for its {size}; free some or choose another folder"
            if full
            else f"cannot be written ({error.strerror})"
        )
        raise PackageError(f"{target}: {why}; nothing was left behind") from error
