"""The sides that quantize a float model by themselves, from the same calibration data and with the same precision beside int8."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from torchsmith.bench.models import Inputs, Model
from torchsmith.bench.sides import BUILDERS, SUBJECT, Builder, Built, binder, openvino_binder, openvino_hints, openvino_model
from torchsmith.quantize.precision import NATIVE_FEATURES
from torchsmith.target import this_cpu

INT8 = "int8"
CALIBRATION_ITEMS = 64  # pictures, say, that each side calibrates with
_FIRST_SEED = 1000  # far from those of the inputs that outputs are checked on

# module, the inputs of the calls to come, the inputs to calibrate with
Quantizer = Callable[[nn.Module, Inputs, Sequence[Inputs]], Built]


def beside_int8() -> torch.dtype:
    """What layers that are not int8 compute in: bfloat16 where this CPU does, as OpenVINO has it by default, else float32."""
    native = NATIVE_FEATURES[torch.bfloat16] & set(this_cpu().features)
    return torch.bfloat16 if native else torch.float32


def torchsmith(module: nn.Module, inputs: Inputs, data: Sequence[Inputs]) -> Built:
    import torchsmith

    fast = torchsmith.compile(
        module,
        inputs=list(inputs.args),
        kwarg_inputs=inputs.kwargs or None,
        enabled_precisions={beside_int8(), torch.int8},
        calibrator=[(*given.args, given.kwargs) if given.kwargs else given.args for given in data],
    )
    return Built(binder(fast), f"{fast!r}; {_described(data)}")


def nncf(module: nn.Module, inputs: Inputs, data: Sequence[Inputs]) -> Built:
    """OpenVINO's own conversion, and NNCF's post-training quantization with its default preset."""
    import nncf
    import openvino as ov

    nncf.set_log_level(40)  # logging.ERROR
    model = openvino_model(module, inputs)
    dataset = nncf.Dataset(data, lambda given: [tensor.numpy() for tensor in given.tensors()])
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress there, where reports go
        quantized = nncf.quantize(model, dataset, subset_size=len(data))
    beside = "bf16" if beside_int8() == torch.bfloat16 else "f32"
    compiled = ov.Core().compile_model(quantized, "CPU", openvino_hints(beside))
    note = f"nncf.quantize, {_described(data)}; {beside} beside int8, static shapes, LATENCY, one infer request reused, no copies"
    return Built(openvino_binder(compiled), note)


QUANTIZERS: Mapping[str, Quantizer] = {SUBJECT: torchsmith, "nncf": nncf}
PEERS = tuple(name for name in (*BUILDERS, *QUANTIZERS) if name != SUBJECT)


def calibration_data(model: Model, batch: int) -> list[Inputs]:
    """CALIBRATION_ITEMS of the model's inputs, in calls of the batch size; none is among those that outputs are checked on."""
    first = model.inputs(batch, _FIRST_SEED)
    calls = -(-CALIBRATION_ITEMS // max(1, first.items))
    return [first, *(model.inputs(batch, _FIRST_SEED + index) for index in range(1, calls))]


def calibrated(quantizer: Quantizer, model: Model, batch: int) -> Builder:
    """A quantizer as a builder."""
    return lambda module, inputs, precision: quantizer(module, inputs, calibration_data(model, batch))


def _described(data: Sequence[Inputs]) -> str:
    return f"calibrated with {sum(given.items for given in data)} items"
