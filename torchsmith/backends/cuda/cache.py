"""Files that builds leave for later ones, and the versions of what they were made with."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

OURS = "torchsmith.backends.cuda"
_IMPORT = re.compile(rf"^\s*from ({re.escape(OURS)}[\w.]*) import (\([^)]*\)|[^\n#(]*)", re.MULTILINE)
# What these say of a kernel is in its steps, or in its node's signature.
_UNRELATED = frozenset(f"{OURS}.{name}" for name in ("emission", "steps", "layout", "fuse.fused"))

_HOOKS = (f"{OURS}.kernels.common", f"{OURS}.kernels.functions")


def cache_folder() -> Path:
    """This user's folder for torchsmith's files; it may not be there yet."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin" and "XDG_CACHE_HOME" not in os.environ:
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "torchsmith")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it. Raises OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".making-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@functools.cache
def source_hash(module: str) -> str:
    """A digest of a module's text, of those of our cuda modules that it imports, directly or not, and of those that hooks call."""
    texts = {name: _text(name) for name in sorted(_closure(module))}
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16]


def _closure(module: str) -> set[str]:
    found, pending = set[str](), [module, *(name for name in _HOOKS if _path(name))]
    while pending:
        name = pending.pop()
        if name not in found and name not in _UNRELATED:
            found.add(name)
            pending += _imports(name)
    return found


def _imports(module: str) -> list[str]:
    found = list[str]()
    for package, names in _IMPORT.findall(_text(module)):
        listed = re.sub(r"#.*", "", names).strip("()").split(",")
        inside = [f"{package}.{name.split()[0]}" for name in listed if name.strip()]
        submodules = [name for name in inside if _path(name) is not None]
        found += submodules if len(submodules) == len(inside) else [*submodules, package]
    return found


@functools.cache
def _text(module: str) -> str:
    path = _path(module)
    assert path is not None, f"{module} has no source"
    return Path(path).read_text(encoding="utf-8")


@functools.cache
def _path(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, AttributeError):  # a name in a module that is no package
        return None
    return None if found is None or found.origin is None or not found.origin.endswith(".py") else found.origin
