"""TensorRT's Python module, whichever of its two kinds is installed, and its log."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import threading
from typing import Any

from torchsmith.errors import BackendUnavailable

# The first that is installed is taken. TensorRT-RTX's wheels call the module by either of the last two names.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
MISSING = (
    "NVIDIA TensorRT is not installed; pip install 'torchsmith[tensorrt]', "
    "or 'torchsmith[tensorrt-rtx]' for the GPUs that TensorRT-RTX supports"
)
_LOG = logging.getLogger("torchsmith.tensorrt")
_OWN = threading.local()


def installed() -> str | None:
    """The module's name, or None; nothing is imported."""
    specs = {name: importlib.util.find_spec(name) for name in MODULES}
    # a mere folder of that name, as of TensorRT's sources, has a spec without an origin
    return next((name for name, spec in specs.items() if spec is not None and spec.origin is not None), None)


@functools.cache
def trt() -> Any:
    """The module. Raises BackendUnavailable."""
    name = installed()
    if name is None:
        raise BackendUnavailable(MISSING)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as broken:  # its libraries are missing, or for another system
        raise BackendUnavailable(f"{name} is installed and cannot be imported ({broken}); install it again") from broken


def is_rtx() -> bool:
    return str(trt().__name__) != "tensorrt"


def title() -> str:
    """For people: "TensorRT-RTX 1.7.1.116"."""
    return f"TensorRT{'-RTX' if is_rtx() else ''} {trt().__version__}"


def supported() -> tuple[str, ...]:
    """The GPUs that TensorRT-RTX runs on, as "sm_89"; empty for TensorRT, which lists none."""
    kinds = getattr(trt(), "ComputeCapability", None) if is_rtx() else None
    names = [] if kinds is None else [name for name in kinds.__members__ if name.startswith("SM")]
    return tuple(f"sm_{number}" for number in sorted(int(name.removeprefix("SM")) for name in names))


@functools.cache
def log() -> Any:
    """TensorRT's logger, which passes everything on to the logger "torchsmith.tensorrt" and keeps what went wrong."""
    module = trt()
    levels = {
        module.ILogger.INTERNAL_ERROR: logging.ERROR,
        module.ILogger.ERROR: logging.ERROR,
        module.ILogger.WARNING: logging.WARNING,
        module.ILogger.INFO: logging.INFO,
        module.ILogger.VERBOSE: logging.DEBUG,
    }

    class Log(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._own = threading.local()

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.INFO)
            _LOG.log(level, "%s", message)
            if level >= logging.ERROR:
                self.problems().append(message)

        def problems(self) -> list[str]:
            """The errors on this thread since `forget`."""
            if not hasattr(self._own, "problems"):
                self._own.problems = []
            found: list[str] = self._own.problems
            return found

        def forget(self) -> None:
            self.problems().clear()

    return Log()


def builder() -> Any:
    """This thread's builder, which makes networks: TensorRT's are for one thread at a time.

    Raises BackendUnavailable where TensorRT cannot make one: it may need a GPU for it.
    """
    if not hasattr(_OWN, "builder"):
        made = trt().Builder(log())
        if made is None:
            raise BackendUnavailable(f"{title()} cannot build engines on this machine: {said()}")
        _OWN.builder = made
    return _OWN.builder


def said() -> str:
    """What TensorRT said last that was an error, as one line."""
    problems = log().problems()
    # that there is no driver is said after many an error, and is seldom why
    telling = [problem for problem in problems if "cudaError 35" not in problem] or problems
    return " ".join(telling[-1].split()) if telling else "it gave no reason"
