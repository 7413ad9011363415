"""The CUDA driver's part: machine code into functions, and functions into launches. No compiler, no Triton."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from torchsmith.errors import BackendUnavailable, EngineMismatch

# Triton's run-time argument types as C has them.
C_TYPES: dict[str, Any] = {
    **{"i1": ctypes.c_int32, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32, "i64": ctypes.c_int64},
    **{"u8": ctypes.c_uint8, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "fp32": ctypes.c_float, "fp64": ctypes.c_double},
}
_unused: deque[Any] = deque()  # libraries of functions that are gone
_LARGE_SHARED = 48 << 10  # bytes of shared memory above which a function must ask for more


@functools.cache
def driver() -> Any:
    """cuda-bindings' driver module. Raises BackendUnavailable where it is not installed."""
    try:
        from cuda.bindings import driver as bindings  # type: ignore[import-untyped, unused-ignore]
    except ImportError as missing:
        raise BackendUnavailable(
            f"the cuda backend runs kernels through cuda-bindings ({missing}); pip install cuda-bindings"
        ) from missing
    return bindings


def check(result: tuple[Any, ...], what: str) -> Any:
    """A driver call's value. Raises EngineMismatch, with the driver's own words, where it failed."""
    error, *values = result
    if int(error) != 0:
        _, text = driver().cuGetErrorString(error)
        raise EngineMismatch(f"the CUDA driver could not {what}: {(text or b'unknown error').decode()} ({error.name})")
    return values[0] if len(values) == 1 else values


class Function:
    """A kernel on the current device, ready to launch. Keep it as long as graphs with its launches are used.

    code: a cubin. types: of its arguments, as Triton writes them; two scratch pointers follow them in Triton's convention.
    carveout: percent of an SM's memory that it would have as shared memory; None leaves that to the driver.
    Raises EngineMismatch for code that the device cannot load.
    """

    def __init__(
        self,
        code: bytes,
        symbol: str,
        threads: int,
        shared_bytes: int,
        pdl: bool,
        types: Sequence[str],
        carveout: int | None = None,
    ) -> None:
        cuda = driver()
        torch.cuda.current_stream()  # the device's context exists from here on
        while _unused:
            cuda.cuLibraryUnload(_unused.popleft())
        self._library = check(cuda.cuLibraryLoadData(code, [], [], 0, [], [], 0), f"load the kernel {symbol}")
        kernel = check(cuda.cuLibraryGetKernel(self._library, symbol.encode()), f"find the kernel {symbol} in its code")
        self.handle = check(cuda.cuKernelGetFunction(kernel), f"put the kernel {symbol} on this device")
        self.threads, self.shared_bytes, self.pdl = threads, shared_bytes, pdl
        self.types: list[Any] = [ctypes.c_uint64 if t.startswith("*") else C_TYPES[t] for t in types]
        if shared_bytes > _LARGE_SHARED:
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(
                cuda.cuFuncSetAttribute(self.handle, attribute, shared_bytes),
                f"give the kernel {symbol} {shared_bytes} bytes of shared memory",
            )
        if carveout is not None:
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
            check(cuda.cuFuncSetAttribute(self.handle, attribute, carveout), f"split the memory of the SMs for the kernel {symbol}")

    def __del__(self) -> None:
        """Code is unloaded when other code is loaded: this may run while a CUDA graph is recorded, which unloading would end."""
        library = getattr(self, "_library", None)
        if library is not None:
            _unused.append(library)

    def launch(self, grid: Sequence[int], arguments: Sequence[int | float], stream: int) -> None:
        """Enqueue on a raw stream. arguments: addresses and numbers. A grid with a zero launches nothing."""
        if 0 in grid:
            return
        cuda = driver()
        values: list[Any] = [type_(value) for type_, value in zip(self.types, arguments, strict=True)] + [
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        config = cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes, config.hStream = self.shared_bytes, stream
        if self.pdl:
            attribute = cuda.CUlaunchAttribute()
            attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        check(cuda.cuLaunchKernelEx(config, self.handle, ctypes.addressof(pointers), 0), "launch a kernel")
