"""Kernels into machine code, with no GPU: Triton compiles for any architecture anywhere."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchsmith.backends.cuda.cache import cache_folder, source_hash, write_whole
from torchsmith.backends.cuda.steps import Hook, Kernel
from torchsmith.backends.cuda.workers import WorkerDied, compile_in_workers
from torchsmith.errors import BuildError

_FORMAT = 1  # of the files that keep machine code
_REMEMBERED = 4096  # kernels of this process's builds
KEPT_BYTES = 1 << 30  # of machine code on disk
_remembered: OrderedDict[str, Cubin | str] = OrderedDict()


@dataclass(frozen=True)
class Cubin:
    """Machine code of one kernel, and what launching it takes.

    symbol: its name in the code. threads: per block. shared_bytes: dynamic shared memory. pdl: whether it waits for its
    predecessor by itself (programmatic dependent launch).
    """

    code: bytes
    symbol: str
    threads: int
    shared_bytes: int
    pdl: bool


class Broken(str):
    """Why a kernel does not compile where it should: a bug of ours, or of Triton's."""


def compile_kernel(kernel: Kernel, arch: int) -> Cubin | str:
    """Compile for sm_`arch`; or the sentence that says why this configuration cannot be (too much shared memory, say).

    Raises BuildError for a kernel that is wrong.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError

    function = getattr(importlib.import_module(kernel.module), kernel.function)
    pdl = arch >= 90 and dict(kernel.constants).get("PDL") is True
    constants: dict[str, Any] = {n: v.function() if isinstance(v, Hook) else v for n, v in kernel.constants}
    if "PDL" in constants:
        constants["PDL"] = pdl
    types = dict(kernel.types)
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    attrs = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    if pdl:
        options["launch_pdl"] = True
    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # two thirds of a cubin and a seventh of the time, for debuggers only
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except triton.runtime.errors.OutOfResources as why:
        return str(why)
    except triton.runtime.errors.PTXASError as why:
        return f"ptxas: {str(why)[:300]}"
    except CompilationError as bug:
        raise BuildError(f"{kernel.function} does not compile for sm_{arch}: {bug}") from bug
    meta = made.metadata
    if getattr(meta, "global_scratch_size", 0) or meta.shared > shared_limit(arch):
        return f"it asks for {meta.shared} bytes of shared memory and {meta.global_scratch_size} of scratch"
    return Cubin(made.asm["cubin"], meta.name, 32 * kernel.num_warps, meta.shared, pdl)


def shared_limit(arch: int) -> int:
    """Bytes of shared memory that one block may have."""
    return {80: 166912, 86: 101376, 89: 101376}.get(arch, 232448 if arch in (90, 100, 103) else 101376)


def attempt(kernel: Kernel, arch: int) -> Cubin | str:
    """`compile_kernel`, with a wrong kernel's message as the answer."""
    try:
        return compile_kernel(kernel, arch)
    except BuildError as bug:
        return Broken(str(bug)[:2000])


def compile_all(kernels: Iterable[Kernel], arch: int, workers: int = 0) -> Iterator[tuple[Kernel, Cubin | str]]:
    """Machine code of each distinct kernel, or the sentence that says why there is none; as they are done, known ones first.

    workers: processes, 0 for as many as there are cores. What this user's earlier builds compiled is taken from disk.
    """
    wanted = list({k.key(): k for k in kernels}.values())
    missing: list[Kernel] = []
    for kernel in wanted:
        known = recall(kernel, arch)
        if known is None:
            missing.append(kernel)
        else:
            yield kernel, known
    missing.sort(key=_written, reverse=True)  # what takes longest first, so that no process is left alone with it at the end
    for kernel, made in _compiled(missing, arch, workers or cores()):
        keep(kernel, arch, made)
        yield kernel, made
    if missing:
        trim(cache_folder() / "cubins")


def _written(kernel: Kernel) -> int:
    """Characters of the functions generated for a kernel: long ones are unrolled loops, which take the compiler many seconds."""
    return sum(len(value.source) for _, value in kernel.constants if isinstance(value, Hook))


def _compiled(kernels: Sequence[Kernel], arch: int, workers: int) -> Iterator[tuple[Kernel, Cubin | str]]:
    # starting a process takes as long as compiling three or four kernels
    if workers <= 1 or len(kernels) < 4 or not sys.executable:
        yield from ((k, attempt(k, arch)) for k in kernels)
        return
    left = {k.key(): k for k in kernels}
    try:
        for kernel, answer in compile_in_workers(kernels, arch, workers):
            del left[kernel.key()]
            died = isinstance(answer, (WorkerDied, OSError))
            yield kernel, Broken(f"the compiler died of {kernel.function}: {answer}") if died else answer
    except OSError:  # no more processes here
        yield from ((k, attempt(k, arch)) for k in list(left.values()))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- what earlier builds compiled --------------------------------------------------------------------------------------------


def recall(kernel: Kernel, arch: int) -> Cubin | str | None:
    """What compiling the kernel gave before: in this process, or in another one of this user. None where nobody did."""
    name = _name(kernel, arch)
    if name not in _remembered:
        found = _read(_path(name))
        if found is None:
            return None
        _remember(name, found)
    return _remembered[name]


def keep(kernel: Kernel, arch: int, made: Cubin | str) -> None:
    """For later builds. A kernel that is wrong is not kept, and a folder that cannot be written is no error."""
    if isinstance(made, Broken):
        return
    name = _name(kernel, arch)
    _remember(name, made)
    code = made.code if isinstance(made, Cubin) else b""
    head: dict[str, Any] = {"reason": made} if isinstance(made, str) else {k: v for k, v in vars(made).items() if k != "code"}
    head["sha256"] = hashlib.sha256(code).hexdigest()
    try:
        write_whole(_path(name), json.dumps(head).encode() + b"\n" + code)
    except OSError:
        return


def trim(folder: Path, most_bytes: int = KEPT_BYTES) -> None:
    """Delete what was written longest ago, until the folder is no larger. What another process deletes meanwhile is no error."""
    found = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    size = sum(s for _, s, _ in found)
    for _, own, path in sorted(found):
        if size <= most_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        size -= own


def _remember(name: str, made: Cubin | str) -> None:
    _remembered[name] = made
    while len(_remembered) > _REMEMBERED:
        _remembered.popitem(last=False)


def _read(path: Path) -> Cubin | str | None:
    """None for a file that is not there, or is damaged."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        row = json.loads(head)
        if row.pop("sha256") != hashlib.sha256(code).hexdigest():
            return None
        return str(row["reason"]) if "reason" in row else Cubin(code, **row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _path(name: str) -> Path:
    return cache_folder() / "cubins" / name[:2] / name


def _name(kernel: Kernel, arch: int) -> str:
    text = repr((_FORMAT, kernel.key(), arch, triton_version(), source_hash(kernel.module)))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@functools.cache
def triton_version() -> str:
    return importlib.metadata.version("triton")
