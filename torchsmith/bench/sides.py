"""What is compared: one builder per side. Each takes a module of its own and gives back the fastest way to call it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.bench.models import Inputs

SUBJECT = "torchsmith"
INT8_SIDE = "torchsmith-int8"  # the same, calibrated, beside it in one run
FLOAT8_SIDE = "torchsmith-f8"
EIGHT_BITS = {"int8": INT8_SIDE, "f8": FLOAT8_SIDE}  # by their precisions
BASELINE = "eager"

PRECISIONS: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Absent(Exception):
    """A peer cannot take part; the message is the reason that its row shows."""


@dataclass(frozen=True)
class Built:
    """A side, ready to run.

    bind(inputs): a call without arguments that gives the outputs, as tensors or a pytree of them. The call is what is timed;
    making it is not (casting the inputs of a model that was cast, say). note: how the side was built and is called.
    """

    bind: Callable[[Inputs], Callable[[], Any]]
    note: str


Builder = Callable[[nn.Module, Inputs, str], Built]


def binder(module: Callable[..., Any], prepare: Callable[[Inputs], Inputs] | None = None) -> Callable[[Inputs], Callable[[], Any]]:
    """`Built.bind` for what is called with the inputs as they are, or as prepare(inputs) gives them."""

    def bind(inputs: Inputs) -> Callable[[], Any]:
        given = prepare(inputs) if prepare else inputs
        return partial(module, *given.args, **given.kwargs)  # in C, so that nothing of ours is timed with it

    return bind


def torchsmith(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    import torchsmith

    fast = torchsmith.compile(
        module,
        inputs=list(inputs.args),
        kwarg_inputs=inputs.kwargs or None,
        enabled_precisions={PRECISIONS[precision]},
    )
    return Built(binder(fast), repr(fast))


def eager(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    dtype = PRECISIONS[precision]
    module = module.to(dtype)
    note = "as it is" if precision == "f32" else f"model.to({dtype}), inputs cast beforehand"
    return Built(binder(module, partial(cast, dtype=dtype)), note)


def torchscript(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    dtype = PRECISIONS[precision]
    given = cast(inputs, dtype)
    module = module.to(dtype)
    if given.kwargs:  # trace takes either positional or keyword inputs
        positional = list(inspect.signature(module.forward).parameters)[: len(given.args)]
        example: dict[str, Any] = {"example_kwarg_inputs": {**dict(zip(positional, given.args, strict=True)), **given.kwargs}}
    else:
        example = {"example_inputs": given.args}
    traced = torch.jit.trace(module, **example, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
    script = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return Built(binder(script, partial(cast, dtype=dtype)), "trace, freeze, optimize_for_inference")


def inductor(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    dtype = PRECISIONS[precision]
    compiled = torch.compile(module.to(dtype), dynamic=False)
    given = cast(inputs, dtype)
    # freezing packs the weights; an empty cache, so that the build time is what a first run costs
    with config.patch(freezing=True), fresh_cache():
        compiled(*given.args, **given.kwargs)  # torch.compile builds at the first call
    return Built(binder(compiled, partial(cast, dtype=dtype)), "torch.compile, dynamic=False, freezing")


def openvino(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    import openvino as ov

    bind = openvino_binder(ov.Core().compile_model(openvino_model(module, inputs), "CPU", openvino_hints(precision)))
    return Built(bind, "convert_model(torch.export), static shapes, LATENCY, one infer request reused, no copies")


def openvino_model(module: nn.Module, inputs: Inputs) -> Any:
    """The `openvino.Model` of a module, with the inputs' shapes.

    OpenVINO's converter leaves sizes open even where the exported program has them, which costs time in small networks: 9 %
    of EfficientNet-B0 in int8 at batch 1 (2026.4.1).
    """
    import openvino as ov

    model = ov.convert_model(torch.export.export(module, inputs.args, inputs.kwargs))
    model.reshape({index: list(tensor.shape) for index, tensor in enumerate(inputs.tensors())})
    return model


def openvino_hints(precision: str) -> dict[str, Any]:
    """OpenVINO's settings. precision: what float operations compute in, "f32", "bf16" or "f16"."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def openvino_binder(compiled: Any) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """How a model that OpenVINO compiled is called quickest."""
    request = compiled.create_infer_request()

    def call(tensors: list[Tensor]) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in tensors], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array) for array in found.values()]

    return lambda inputs: partial(call, inputs.tensors())


def onnxruntime(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    if precision != "f32":
        raise Absent(f"ONNX Runtime's CPU kernels compute in f32, not in {precision}")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(module, inputs.args, path, kwargs=inputs.kwargs, dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [described.name for described in session.get_inputs()]

    def call(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))]

    return Built(lambda inputs: partial(call, inputs.tensors()), "torch.onnx.export(dynamo=True), one session reused")


BUILDERS: Mapping[str, Builder] = {
    SUBJECT: torchsmith,
    BASELINE: eager,
    "torchscript": torchscript,
    "inductor": inductor,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
}

# what a side needs beyond torch; imported before its build is timed
PACKAGES: Mapping[str, tuple[str, ...]] = {
    SUBJECT: ("torchsmith.capture", "torchsmith.lower", "torchsmith.build", "torchsmith.runtime.compiled", "openvino"),
    "inductor": ("torch._inductor.compile_fx",),
    "openvino": ("openvino", "openvino.frontend.pytorch.fx_decoder"),
    "onnxruntime": ("onnxruntime", "onnxscript", "torch.onnx"),
    "nncf": ("nncf", "openvino", "openvino.frontend.pytorch.fx_decoder"),
}


# set before its packages are imported: NNCF reports its use over the network, but for where it is tested
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"nncf": {"NNCF_CI": "1"}}


def import_packages(name: str) -> None:
    """Import what a side needs. Raises Absent where a package is not there."""
    os.environ.update(ENVIRONMENT.get(name, {}))
    for package in PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            missing = (error.name or package).partition(".")[0]
            raise Absent(f"it needs the package {missing}; pip install {missing}") from error


@contextmanager
def peers_may_fail(name: str) -> Iterator[None]:
    """Turn what goes wrong inside a peer into `Absent`, in one line; our own errors pass. Warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript's deprecation and the like: not what is asked here
            yield
    except Absent:
        raise
    except Exception as error:  # a peer's compiler may raise anything, and its failure is a result
        if name == SUBJECT:
            raise
        raise Absent(f"{type(error).__name__}: {first_line(error)}") from error


def forget_compiled() -> None:
    """Clear what torch.compile keeps: past eight versions of one `forward`, it runs the next in eager mode without a word."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs, floating-point tensors in `dtype`."""

    def one(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    args, kwargs = torch.utils._pytree.tree_map(one, (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else "no message"
