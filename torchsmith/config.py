"""Every option, declared once: one frozen dataclass a stage.

`Config.from_options` reads the flat names that `torchsmith.compile` takes; the command line's flags and the documentation
are made from the same fields (`options()`).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from torchsmith.errors import InvalidOption


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field that users set by its name. help: one line, no full stop."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class CaptureConfig:
    strict: bool = option(False, "trace with TorchDynamo (strict export) instead of running the module's Python code")


@dataclass(frozen=True)
class LowerConfig:
    fold_constants: bool = option(True, "evaluate at compile time what does not depend on the inputs")
    fold_batch_norm: bool = option(True, "fold batch norm into the convolution or linear before it")


@dataclass(frozen=True)
class QuantizeConfig:
    enabled_precisions: frozenset[torch.dtype] = option(
        frozenset({torch.float32}), "the dtypes that engines may compute in; the fastest that the device has is taken"
    )
    calibrator: object = option(
        None,
        "typical inputs to choose ranges of int8 and fp8 by: a DataLoader, a list, one of torchsmith.ptq, or a calibration cache's "
        "path; on the command line file.py:function, which returns them",
    )
    accuracy_budget: object = option(
        None,
        "what lower precisions may cost: a relative error of the outputs over the calibrator's data, such as 0.01, or an "
        "AccuracyBudget, on the command line file.py:function, which returns one; each layer gets the fastest precision that "
        "keeps it",
    )
    require_eight_bits: bool = option(
        False, "keep int8 and fp8 also where the model was timed and is faster in floats, for the memory that they save"
    )
    skip_layers: frozenset[str] = option(
        frozenset(), "modules that int8 and fp8 leave as they are: paths, or patterns such as blocks.0.*"
    )


@dataclass(frozen=True)
class PartitionConfig:
    min_block_size: int = option(5, "the fewest ATen ops worth an engine, where others stay in PyTorch")
    torch_executed_ops: frozenset[str] = option(frozenset(), "ATen ops that stay in PyTorch, such as aten.add.Tensor or aten.add")
    require_full_compilation: bool = option(False, "fail where any op would stay in PyTorch")


@dataclass(frozen=True)
class BuildConfig:
    performance_hint: str = option("latency", "what an engine is scheduled for", choices=("latency", "throughput"))
    num_threads: int = option(0, "CPU threads an engine may use; 0: as many as PyTorch does")
    tune: bool = option(True, "time the ways to run each layer on this GPU, and take the fastest; else take best guesses")
    timing_cache_path: str | None = option(
        None,
        "file of measured times, shared between builds; the default is in this user's cache folder (TensorRT: none), '' is none",
    )
    disable_tf32: bool = option(False, "multiply float32 in full on GPUs, also where PyTorch's switches allow TF32")
    tactics_per_node: int = option(8, "how many configurations of each kernel template are timed for a layer")
    compile_workers: int = option(0, "processes that compile GPU kernels; 0: as many as there are CPU cores")
    workspace_size: int = option(0, "TensorRT: bytes of scratch memory that a layer may use; 0: as much as there is")
    optimization_level: int | None = option(
        None, "TensorRT: how long to search for fast kernels, 0 to 5; the default is its own, 3"
    )
    version_compatible: bool = option(False, "TensorRT: build engines that later versions of it can run")
    hardware_compatible: bool = option(False, "TensorRT: build engines that run on every GPU since Ampere")
    sparse_weights: bool = option(False, "TensorRT: let it use 2:4 sparse kernels for weights that are 2:4")
    max_aux_streams: int | None = option(
        None, "TensorRT: streams that an engine may use beside the caller's; the default is its own choice"
    )
    engine_capability: str = option(
        "standard", "TensorRT: what engines are restricted to", choices=("standard", "safety", "dla_standalone")
    )


@dataclass(frozen=True)
class Config:
    backend: str | None = option(None, "the engine's backend; the default is the fastest one that is available for the device")
    target: str | None = option(None, "what to build for, such as sm_90, where it is not this machine's device")
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    lower: LowerConfig = field(default_factory=LowerConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    build: BuildConfig = field(default_factory=BuildConfig)

    @staticmethod
    def from_options(**given: Any) -> Config:
        """Sort flat options into their stages. Raises InvalidOption for an unknown name (naming the nearest) or a bad value."""
        known = options()
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, "inputs", "kwarg_inputs", "device"], n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(sorted(known))}"
                raise InvalidOption(f"compile() has no option {name!r}; {hint}")
        values = {name: _read(known[name], value) for name, value in given.items()}
        stages = {}
        for stage in dataclasses.fields(Config):
            if isinstance(stage.default_factory, type):
                own = {f.name: values[f.name] for f in dataclasses.fields(stage.default_factory) if f.name in values}
                stages[stage.name] = stage.default_factory(**own)
            elif stage.name in values:
                stages[stage.name] = values[stage.name]
        return Config(**stages)


def options() -> dict[str, dataclasses.Field[Any]]:
    """Every option by its flat name, in the order of the stages."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for f in dataclasses.fields(Config):
        if isinstance(f.default_factory, type):
            found.update({g.name: g for g in dataclasses.fields(f.default_factory)})
        else:
            found[f.name] = f
    return found


def _read(f: dataclasses.Field[Any], value: Any) -> Any:
    """Check one value against its field, and give it the field's type."""
    choices = f.metadata["choices"]
    if choices and str(value).lower() not in choices:
        raise InvalidOption(f"{f.name}={value!r}; it takes one of {', '.join(choices)}")
    if choices:
        return str(value).lower()
    if f.name == "enabled_precisions":
        return _precisions(value)
    if f.name == "torch_executed_ops":
        if isinstance(value, str) or not isinstance(value, Collection):
            raise InvalidOption(f"torch_executed_ops={value!r}; it takes a set of op names or torch.ops overloads")
        return frozenset(op if isinstance(op, str) else str(op) for op in value)
    if f.name == "skip_layers":
        if isinstance(value, str) or not isinstance(value, Collection) or not all(isinstance(path, str) for path in value):
            raise InvalidOption(f"skip_layers={value!r}; it takes a set of module paths, such as 'layer1.0.conv1', or patterns")
        return frozenset(value)
    if f.name == "timing_cache_path":
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise InvalidOption(f"timing_cache_path={value!r}; it takes a file's path, or '' for none")
        return None if value is None else os.fspath(value)
    if f.name in ("optimization_level", "max_aux_streams"):
        most = 5 if f.name == "optimization_level" else None
        if value is not None and (type(value) is not int or value < 0 or (most is not None and value > most)):
            raise InvalidOption(
                f"{f.name}={value!r}; it takes a whole number" + (f" from 0 to {most}" if most else " that is not negative")
            )
        return value
    if isinstance(f.default, bool) and not isinstance(value, bool):
        raise InvalidOption(f"{f.name}={value!r}; it takes True or False")
    if type(f.default) is int and (type(value) is not int or value < 0):
        raise InvalidOption(f"{f.name}={value!r}; it takes a whole number that is not negative")
    return value


def _precisions(value: Any) -> frozenset[torch.dtype]:
    from torchsmith.dtypes import dtype as public_dtype  # the enum users may pass instead of torch's dtypes

    if isinstance(value, (torch.dtype, public_dtype)):
        value = {value}
    if not isinstance(value, Collection) or isinstance(value, str) or not value:
        raise InvalidOption(f"enabled_precisions={value!r}; it takes a set such as {{torch.float32, torch.bfloat16}}")
    read = frozenset(public_dtype.of(p).torch for p in value)
    usable = {torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn}
    if refused := read - usable:
        names = ", ".join(sorted(str(p) for p in refused))
        raise InvalidOption(
            f"enabled_precisions has {names}; this version computes in torch.float32, torch.float16, torch.bfloat16, torch.int8 "
            "and torch.float8_e4m3fn"
        )
    return read
