"""Kernels into machine code, with no GPU: Triton compiles for any architecture anywhere."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from torchsmith.backends.cuda.steps import Hook, Kernel
from torchsmith.errors import BuildError


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


def compile_kernel(kernel: Kernel, arch: int) -> Cubin | str:
    """Compile for sm_`arch`; or the sentence that says why this configuration cannot be (too much shared memory, say)."""
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


def compile_all(kernels: Iterable[Kernel], arch: int, workers: int = 0) -> Iterator[tuple[Kernel, Cubin | str]]:
    """Compile kernels in parallel processes, as they are done. workers: 0 for as many as there are cores."""
    wanted = list({k.key(): k for k in kernels}.values())
    workers = min(workers or len(os.sched_getaffinity(0)), len(wanted))
    if workers <= 1 or len(wanted) < 4:
        yield from ((k, compile_kernel(k, arch)) for k in wanted)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(compile_kernel, k, arch): k for k in wanted}
        for done in as_completed(running):
            yield running[done], done.result()
