"""The road from a model to a compiled module, stage by stage.

The stages are imported as they are reached: `import torchsmith` stays light.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchsmith.config import Config
from torchsmith.errors import InvalidOption

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torchsmith.capture import NotConvertible
    from torchsmith.inputs import Device, ExampleInputs
    from torchsmith.runtime.compiled import CompiledModule
    from torchsmith.runtime.hybrid import HybridScript

    Where = Device | torch.device | str | None

# Torch-TensorRT's names for its front ends.
IRS = ("default", "dynamo", "exported_program", "fx", "torchscript", "ts")


def compile(
    module: Any,
    ir: str = "default",
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    arg_inputs: Sequence[Any] | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    device: Device | torch.device | str | None = None,
    **options: Any,
) -> CompiledModule | HybridScript:
    """Compile a model for inference.

    module: an `nn.Module` in eval mode, an `ExportedProgram`, a `GraphModule` or a `ScriptModule`; it is not changed.
    inputs: one `torchsmith.Input`, tensor or nested container of them per positional argument. kwarg_inputs: the same by
    name. ir: accepted for Torch-TensorRT's callers; every kind of module takes the same road. device: where the engines
    run; by default where the model's parameters are. target: an architecture such as "sm_90" to build for instead, which this
    machine need not have; the result can then be saved and looked at, and runs where `torchsmith.load` finds such a GPU.
    options: see `torchsmith.config`; the usual ones are `enabled_precisions={torch.float32}` (dtypes that engines may compute
    in), `min_block_size=5`, `torch_executed_ops`, `require_full_compilation=False`, `backend=None`, `target=None`,
    `performance_hint="latency"`, `num_threads=0`; for int8 and fp8, `calibrator=None` (a DataLoader, inputs, or one of
    torchsmith.ptq) and `skip_layers`; `accuracy_budget=None` (a relative error of the outputs, or an AccuracyBudget) lets each
    layer have the fastest of the enabled precisions with which the whole keeps the budget on the calibrator's data.

    Returns a module with the original's call signature, inputs and outputs. A ScriptModule that keeps state or looks at values
    becomes a `HybridScript`, in which submodules are compiled and TorchScript runs what is around them.
    Raises InvalidOption, InvalidInput, CaptureError, BackendUnavailable, BudgetExceeded, FullCompilationRequired or BuildError,
    each with what to do.
    """
    from torchsmith.capture import NotConvertible
    from torchsmith.inputs import resolve

    if ir not in IRS:
        raise InvalidOption(f"ir={ir!r}; torchsmith takes {', '.join(IRS)}, which all mean the same here")
    config = Config.from_options(**options)
    examples = resolve(inputs if arg_inputs is None else arg_inputs, kwarg_inputs)
    try:
        return whole(module, examples, config, device)
    except NotConvertible as why:
        return in_parts(module, examples, config, device, why)


def convert_method_to_trt_engine(
    module: Any, method_name: str = "forward", inputs: Sequence[Any] | Mapping[str, Any] | None = None, **options: Any
) -> bytes:
    """A model as one TensorRT engine, in TensorRT's own bytes: what `trtexec` and TensorRT's runtime load.

    Inputs are called input0, input1, ... there, and outputs output0, output1, ...; both are in the order of the model's. options:
    as `compile` takes them, with backend="tensorrt" and require_full_compilation=True.
    Raises what `compile` does, and InvalidOption for a method other than "forward".
    """
    from torchsmith.backends.tensorrt.engine import parse
    from torchsmith.errors import BuildError
    from torchsmith.runtime.compiled import CompiledModule
    from torchsmith.runtime.tensors import to_bytes

    if method_name != "forward":
        raise InvalidOption(f"method_name={method_name!r}; models are compiled by their forward, so wrap the method in a module's")
    fixed = {"backend": "tensorrt", "require_full_compilation": True, "min_block_size": 1}
    compiled = compile(module, inputs=inputs, **{**options, **fixed})
    calls = compiled.plan.engine_calls if isinstance(compiled, CompiledModule) else []
    if not isinstance(compiled, CompiledModule) or len(calls) != 1 or compiled.plan.torch_calls:
        raise BuildError(f"the model did not become one engine and nothing else: {compiled!r}")
    return parse(to_bytes(compiled.program.constants[calls[0].constant])).plan.numpy().tobytes()


def whole(module: Any, examples: ExampleInputs, config: Config, device: Where) -> CompiledModule:
    """The road: a model as one program."""
    from torchsmith import debug
    from torchsmith.backends import choose
    from torchsmith.build import build
    from torchsmith.capture import capture
    from torchsmith.inputs import Device
    from torchsmith.lower import lower
    from torchsmith.partition.segments import Partitioned, partition
    from torchsmith.quantize.post_training import Quantized, quantize
    from torchsmith.report import report
    from torchsmith.runtime.budget import within_budget
    from torchsmith.runtime.compiled import CompiledModule
    from torchsmith.runtime.contest import faster, is_contested
    from torchsmith.runtime.places import place_of

    started = time.perf_counter()
    asked = None if device is None else Device.of(device).torch
    with debug.road(config) as stage:
        captured = stage("capture", capture, module, examples, config.capture)
        backend, target = choose(config.backend, asked or captured.device, config.target)
        place = place_of(target, captured.device, asked)
        lowered = stage("lower", lower, captured, config.lower, keep=config.partition.torch_executed_ops)

        def parted(program: ExportedProgram) -> Partitioned:
            return partition(program, lambda node: backend.refuses(node, target), config.partition)

        quantized = stage("quantize", quantize, lowered, config.quantize, target, backend.int8, lambda p: parted(p).in_torch)

        def finish(quantized: Quantized) -> CompiledModule:
            partitioned = stage("partition", parted, quantized.program)
            built = stage("build", build, partitioned, backend, target, quantized.narrowed(config))
            record = report(partitioned, built, backend, target, config, time.perf_counter() - started, quantized.reasons)
            return CompiledModule(built.program, record, captured.signature, place)

        module = within_budget(quantized, finish)
        return faster(module, quantized, finish) if is_contested(module, quantized, config, backend.int8) else module


def in_parts(module: Any, examples: ExampleInputs, config: Config, device: Where, why: NotConvertible) -> HybridScript:
    """A ScriptModule that is no program: the road for each of its parts, TorchScript for the control flow around them."""
    from torchsmith import debug
    from torchsmith.backends import choose
    from torchsmith.capture import split
    from torchsmith.inputs import Device, resolve
    from torchsmith.quantize.post_training import no_calibrator
    from torchsmith.report import report_of_parts
    from torchsmith.runtime.hybrid import CompiledPart, HybridScript
    from torchsmith.runtime.places import place_of, stays

    started = time.perf_counter()
    asked = None if device is None else Device.of(device).torch
    with debug.road(config) as stage:
        found = stage("split", split, module, examples, why, config)
    backend, target = choose(config.backend, asked or found.device, config.target)
    stays(place_of(target, found.device, asked), why)
    no_calibrator(config.quantize, why)
    compiled = [(part.path, whole(part.captured.program, resolve(), config, device)) for part in found.parts]
    reports = [(path, module.report) for path, module in compiled]
    record = report_of_parts(found.name, why, reports, backend, target, config, time.perf_counter() - started)
    return HybridScript(found.script, [CompiledPart(*part) for part in compiled], record)
