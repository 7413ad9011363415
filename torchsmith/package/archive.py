"""The file itself: a zip of stored entries, every one of them known by name and held to its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from torchsmith.errors import PackageError
from torchsmith.runtime.tensors import to_bytes, view_of

FORMAT = 1  # of the header and the plan; raise it when an older torchsmith would misread a newer file
HEADER = "extra/torchsmith.json"

# What torch.export.save writes for programs that need no pickle, and the header. Everything else is refused: other entries
# of such files are unpickled, or loaded as code, by those who open them.
ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/weight_\d+|data/weights/model_weights_config\.json"
    r"|data/constants/tensor_\d+|data/constants/model_constants_config\.json|extra/torchsmith\.json"
)
# A module that was compiled in parts has its TorchScript, and each part as a program of its own.
SCRIPT = "script.pt"
PART = "parts/{}/"
SCRIPT_ENTRIES = re.compile(rf"script\.pt|parts/\d+/({ENTRIES.pattern})")
EMPTY = "data/sample_inputs/model.pt"  # pickled where it is not empty
_CONFIGS = {"data/weights/model_weights_config.json": r"weight_\d+", "data/constants/model_constants_config.json": r"tensor_\d+"}


@dataclass(frozen=True)
class Archive:
    """A verified file. entries: the bytes of each, 1-D uint8, by name without the root folder."""

    path: str
    header: dict[str, Any]
    entries: Mapping[str, Tensor]

    def json(self, name: str) -> Any:
        return json.loads(to_bytes(self.entries[name]))

    def parts(self) -> list[tuple[str, Archive]]:
        """The parts of a module that was compiled in parts: each one's path, and its program. Raises PackageError."""
        try:
            return [(str(part["path"]), self._part(PART.format(i), part["header"])) for i, part in enumerate(self.header["parts"])]
        except (TypeError, KeyError) as error:
            raise PackageError(f"{self.path}: the header's parts cannot be read ({error}); save the module again") from error

    def _part(self, folder: str, header: dict[str, Any]) -> Archive:
        def inside(table: Mapping[str, Any]) -> dict[str, Any]:
            return {name.removeprefix(folder): value for name, value in table.items() if name.startswith(folder)}

        return Archive(self.path, {**header, "entries": inside(self.header["entries"])}, inside(self.entries))


def read_header(path: str) -> dict[str, Any]:
    """The header of a package, without reading the rest. Raises PackageError, in a sentence, for any other file."""
    with _open(path) as file:
        return _header(path, _zip(path, file))[0]


def read_archive(path: str) -> Archive:
    """Read and verify a package whole. Raises PackageError, in a sentence, for any other file."""
    with _open(path) as file:
        archive = _zip(path, file)
        header, root = _header(path, archive)
        infos = {info.filename.removeprefix(root): info for info in archive.infolist()}
        if len(infos) < len(archive.infolist()):
            raise PackageError(f"{path}: has two entries of one name; the file has been altered, copy it again")
        _check_names(path, header, infos)
        entries = {name: _entry(path, file, name, info, header["entries"]) for name, info in infos.items() if name != HEADER}
    found = Archive(path, header, entries)
    for program in [part for _, part in found.parts()] if "parts" in header else [found]:
        _check_no_pickles(program)
    return found


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise PackageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be opened ({error.strerror})") from error


def _zip(path: str, file: IO[bytes]) -> zipfile.ZipFile:
    start = file.read(4)
    if start != b"PK\x03\x04":
        raise PackageError(f"{path}: {_not_a_zip(start, os.fstat(file.fileno()).st_size)}")
    file.seek(-min(22, os.fstat(file.fileno()).st_size), os.SEEK_END)
    if file.read(4) != b"PK\x05\x06":
        raise PackageError(f"{path}: the end of the file is missing; it was cut off or not copied whole; copy it again")
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise PackageError(f"{path}: its table of contents has been altered or damaged ({error}); copy the file again") from error


def _not_a_zip(start: bytes, size_bytes: int) -> str:
    if not size_bytes:
        return "the file is empty; copy or save it again"
    if start[:1] == b"\x80":
        return "this is a pickle, which torchsmith never reads, because unpickling runs code; save with torchsmith.save"
    return "this is no package of torchsmith's (it does not begin like one); save with torchsmith.save"


def _header(path: str, archive: zipfile.ZipFile) -> tuple[dict[str, Any], str]:
    """The header, and the root folder that all entries lie in."""
    names = archive.namelist()
    root = next((name.removesuffix(HEADER) for name in names if name.endswith("/" + HEADER)), None)
    if root is None:
        raise PackageError(f"{path}: {_foreign({name.split('/', 1)[-1] for name in names})}")
    try:
        header = json.loads(archive.read(root + HEADER))
        number = header["format"]
    except zipfile.BadZipFile as error:
        raise PackageError(f"{path}: the header has been altered or damaged ({error}); copy the file again") from error
    except (ValueError, KeyError, TypeError, RecursionError, NotImplementedError, RuntimeError) as error:
        raise PackageError(f"{path}: the header cannot be read ({type(error).__name__}: {error}); save the module again") from error
    if type(number) is not int or number > FORMAT:
        raise PackageError(
            f"{path}: written by torchsmith {header.get('torchsmith')!r} in format {number!r}, and this torchsmith reads "
            f"formats up to {FORMAT}; upgrade torchsmith"
        )
    return header, root


def _foreign(names: set[str]) -> str:
    if "constants.pkl" in names:
        return "this is a TorchScript file; open it with torch.jit.load and compile it"
    if "data.pkl" in names:
        return "this is a torch.save file; open it with torch.load if you trust it"
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "an exported program that torchsmith did not write; open it with torch.export.load and compile it"
    return "a zip file that is no package of torchsmith's; save with torchsmith.save"


def _check_names(path: str, header: dict[str, Any], infos: Mapping[str, zipfile.ZipInfo]) -> None:
    listed = header.get("entries")
    if not isinstance(listed, dict):
        raise PackageError(f"{path}: the header lists no entries; save the module again")
    known = SCRIPT_ENTRIES if "parts" in header else ENTRIES
    for name in infos:
        if not known.fullmatch(name) and name != HEADER:
            raise PackageError(
                f"{path}: has the entry {name!r}, which torchsmith never writes and does not open; get the file from its author"
            )
    if difference := sorted(set(listed) ^ (set(infos) - {HEADER})):
        raise PackageError(f"{path}: the entry {difference[0]!r} was added or removed; the file has been altered, copy it again")


def _entry(path: str, file: IO[bytes], name: str, info: zipfile.ZipInfo, listed: Mapping[str, Any]) -> Tensor:
    """One entry's bytes, checked against the header's list."""
    altered = PackageError(f"{path}: the entry {name!r} has been altered or damaged; copy the file again")
    try:
        size, digest = listed[name]
    except (TypeError, ValueError) as error:
        raise altered from error
    file_bytes = os.fstat(file.fileno()).st_size
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != size or size > file_bytes:
        raise altered
    file.seek(info.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise altered
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    data = torch.empty(size, dtype=torch.uint8)
    view = view_of(data)
    if (file.readinto(view) if size else 0) != size or hashlib.sha256(view).hexdigest() != digest:  # type: ignore[attr-defined]
        raise altered
    return data


def _check_no_pickles(archive: Archive) -> None:
    """No entry is one that torch.export.load would unpickle. Raises PackageError."""
    refused = PackageError(f"{archive.path}: has pickled data, which torchsmith never reads, because unpickling runs code")
    if EMPTY in archive.entries and archive.entries[EMPTY].numel():
        raise refused
    for name, pattern in _CONFIGS.items():
        try:
            payloads = archive.json(name)["config"].values()
            plain = all(p["use_pickle"] is False and re.fullmatch(pattern, p["path_name"]) for p in payloads)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PackageError(f"{archive.path}: the entry {name!r} cannot be read ({error}); save the module again") from error
        if not plain:
            raise refused
