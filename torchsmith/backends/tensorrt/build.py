"""A graph into a TensorRT engine: options, optimisation profile, progress, and errors that name the user's line."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchsmith.backends.tensorrt import engine
from torchsmith.backends.tensorrt.emit import Emission, edge_names
from torchsmith.backends.tensorrt.library import builder, is_rtx, log, said, title, trt
from torchsmith.config import BuildConfig
from torchsmith.debug.progress import Progress, progress_of
from torchsmith.errors import BuildError, InvalidOption
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Graph
from torchsmith.target import Target

# TensorRT-RTX's engines run on every GPU that it supports but for these, unless they are built for them alone.
TURING = "sm_75"
_LOG = logging.getLogger("torchsmith.tensorrt")
CAPABILITIES = {"standard": "STANDARD", "safety": "SAFETY", "dla_standalone": "DLA_STANDALONE"}


def build_engine(graph: Graph, target: Target, config: BuildConfig) -> bytes:
    """Raises BuildError, with TensorRT's own words, where it cannot build the graph; InvalidOption for what it does not offer."""
    log().forget()
    emission = Emission(graph)
    network = emission.emit_all()
    with configured(config, target) as settings:
        if profile := profile_of(graph):
            settings.add_optimization_profile(profile)
        built = watched(network, settings)
    if built is None:
        raise BuildError(f"{title()} could not build the engine: {said()}{_place(network)}")
    return engine.pack(bytes(built), graph, target, engine.layers_of(network), host_code=config.version_compatible)


def profile_of(graph: Graph) -> Any:
    """The sizes that the engine is for, and those it is tuned at: the typical ones, or in the middle. None without dynamic ones.

    Raises BuildError for a size without an upper limit, which TensorRT needs.
    """
    if not graph.ranges:
        return None
    for symbol, (_, high) in graph.ranges.items():
        if high is None:
            raise BuildError(
                f"TensorRT needs the most that the dynamic size {symbol} can be; give it, as in "
                "torchsmith.Input(min_shape=..., opt_shape=..., max_shape=...)"
            )
    lows = {s: max(1, low) for s, (low, _) in graph.ranges.items()}
    highs = {s: max(lows[s], high or 0) for s, (_, high) in graph.ranges.items()}
    middles = {s: min(max(graph.typical.get(s, round((lows[s] * highs[s]) ** 0.5)), lows[s]), highs[s]) for s in lows}
    profile = builder().create_optimization_profile()
    for name, value in zip(edge_names(graph)[0], graph.inputs, strict=True):
        if not all(isinstance(size, int) for size in value.type.shape):
            profile.set_shape(name, *(bind(value.type.shape, at) for at in (lows, middles, highs)))
    return profile


@contextmanager
def configured(config: BuildConfig, target: Target) -> Iterator[Any]:
    """A builder's configuration by our options. What was timed is added to the timing cache when the build is over.

    Raises InvalidOption for what this TensorRT does not offer.
    """
    module, settings = trt(), builder().create_builder_config()
    if config.workspace_size:
        settings.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, config.workspace_size)
    if config.optimization_level is not None:
        settings.builder_optimization_level = config.optimization_level
    if config.max_aux_streams is not None:
        settings.max_aux_streams = config.max_aux_streams
    if config.hardware_compatible:
        settings.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if config.engine_capability != "standard":
        _not_by_rtx(f"engine_capability={config.engine_capability!r}")
        settings.engine_capability = getattr(module.EngineCapability, CAPABILITIES[config.engine_capability])
    if config.version_compatible:
        _not_by_rtx("version_compatible=True")
        settings.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if config.sparse_weights:
        settings.set_flag(module.BuilderFlag.SPARSE_WEIGHTS)
    if config.disable_tf32:
        settings.clear_flag(module.BuilderFlag.TF32)
    if is_rtx() and target.arch == TURING:
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(module.ComputeCapability.SM75, 0)
    with timings(settings, config.timing_cache_path):
        yield settings


def _not_by_rtx(option: str) -> None:
    if is_rtx():
        raise InvalidOption(f"{option}, which {title()} does not offer; leave it out, or install TensorRT")


@contextmanager
def timings(settings: Any, path: str | None) -> Iterator[None]:
    """With the times in a file, to which those of this build are added. A file that fits another version or GPU is replaced.

    Raises InvalidOption for a path that cannot be read or written.
    """
    if not path:
        yield
        return
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        known = file.read_bytes() if file.exists() else b""
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InvalidOption(f"timing_cache_path={path!r} cannot be used ({error}); give a file that can be written") from error
    if known.startswith(b"{"):  # lines of JSON
        raise InvalidOption(f"timing_cache_path={path!r} has times of the cuda backend's kernels; give TensorRT a file of its own")
    if is_rtx():
        _LOG.warning("%s compiles kernels where they run and times none as it builds; timing_cache_path is not used", title())
        yield
        return
    cache = settings.create_timing_cache(known)
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        _LOG.warning("the times in %s are of another version of TensorRT or another GPU; they are replaced", path)
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, ignore_mismatch=False)
    yield
    try:
        _replace(file, bytes(settings.get_timing_cache().serialize()))
    except OSError as error:  # which is no reason to lose the engine
        _LOG.warning("the times that were measured could not be kept in %s (%s)", path, error)


def _replace(file: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    with os.fdopen(handle, "wb") as new:
        new.write(data)
    os.replace(name, file)


def watched(network: Any, settings: Any) -> Any:
    """Build with a progress bar; Ctrl-C ends the build at its next step. None where TensorRT fails."""
    with progress_of("building with TensorRT") as progress:
        monitor = _monitor(progress)
        settings.progress_monitor = monitor
        built = builder().build_serialized_network(network, settings)
    if monitor.interrupted:
        raise KeyboardInterrupt
    return built


def _monitor(progress: Progress) -> Any:
    class Monitor(trt().IProgressMonitor):  # type: ignore[misc]
        """TensorRT calls it from its own code, through which no exception may pass."""

        def __init__(self) -> None:
            trt().IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.expect(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress.advance()
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None: ...

    return Monitor()


def _place(network: Any) -> str:
    """The layers that TensorRT's errors name, which have our nodes' names and with them the user's source lines."""
    text = " ".join(log().problems())
    names = [network.get_layer(i).name for i in range(network.num_layers)]
    # what a layer was made of has a source line, and casts between precisions have none
    blamed = sorted((name for name in names if name in text), key=lambda name: " of " not in name)
    return f" (at {blamed[0]})" if blamed else ""
