"""The TorchScript inside a package, of modules that were compiled in parts.

`torch.jit.load` does not run Python: code is TorchScript, which its own parser reads, and pickles are read by a reader in C++
that makes numbers, texts, containers, tensors and TorchScript's own types, and imports nothing. But TorchScript has operators
that touch files, and classes of C++ may do anything. So the texts are read here first, and nothing else reaches the parser.
"""

from __future__ import annotations

import io
import re
import zipfile

import torch

from torchsmith.errors import PackageError

# What torch.jit.save writes. Everything else is left out before the file is opened.
_ENTRIES = re.compile(r"(code/[\w/.]+\.py(\.debug_pkl)?|(data|constants)(\.pkl|/\w+)|version|byteorder|\.data/\w+)")
_FILES = re.compile(r"\.\s*(save|from_file)\b")
# by a name in quotes: of submodules such as "0"
_GETATTR = re.compile(r"\bgetattr\b(?!\s*\(\s*[\w.]+\s*,\s*\"(?!(save|from_file|ops|classes)\")\w+\"\s*\))[^)]*")
_OPS = re.compile(r"\bops\b(?!\s*\.\s*(prim|aten|quantized)\b)[\s.]*\w*")
_CLASSES = re.compile(r"\bclasses\s*\.\s*(?!quantized\b)\w*")


def script_to_bytes(script: torch.jit.ScriptModule) -> bytes:
    """A ScriptModule with its state as it is now. Raises PackageError for one that no package may carry."""
    file = io.BytesIO()
    try:
        torch.jit.save(script, file)
    except RuntimeError as error:
        raise PackageError(f"{script.original_name} cannot be saved by torch.jit.save ({_line(error)})") from error
    data = file.getvalue()
    _checked(data)
    return data


def script_from_bytes(data: bytes) -> torch.jit.ScriptModule:
    """What `script_to_bytes` wrote. Raises PackageError for anything that torch.jit.save did not write, or no package may carry."""
    try:
        checked = _checked(data)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise PackageError(f"its TorchScript cannot be read ({_line(error)}); save the module again") from error
    try:
        script: torch.jit.ScriptModule = torch.jit.load(checked)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise PackageError(
            f"its TorchScript cannot be read by torch {torch.__version__} ({_line(error)}); save the module again with this torch"
        ) from error
    return script


def _checked(data: bytes) -> io.BytesIO:
    """The same archive, written anew from what was checked, so that no reader of zips sees anything else in it."""
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as checked:
        names = archive.namelist()
        root = names[0].split("/")[0] + "/" if names else ""
        if len(set(names)) < len(names):
            raise PackageError("its TorchScript has two entries of one name; get the file from its author")
        for name in names:
            inside = name.removeprefix(root)
            if not _ENTRIES.fullmatch(inside):
                raise PackageError(f"its TorchScript has the entry {inside!r}, which torchsmith does not open")
            content = archive.read(name)
            if inside.endswith(".py"):
                _check(content.decode().replace("\\\n", " "), _FILES, _GETATTR, _OPS, _CLASSES)
            elif inside.endswith(".pkl"):
                _check(content.decode("latin-1"), _CLASSES)
            checked.writestr(f"script/{inside}", content)
    copy.seek(0)
    return copy


def _check(text: str, *patterns: re.Pattern[str]) -> None:
    for pattern in patterns:
        if found := pattern.search(text):
            raise PackageError(
                f"its TorchScript has {found.group().strip()!r}; TorchScript that touches files, or calls what is not "
                "PyTorch's own, is not saved or loaded"
            )


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
