"""Eight bits against floats: of a calibrated model the faster of both forms is kept, where both run here."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchsmith import debug
from torchsmith.config import Config
from torchsmith.errors import OutOfDeviceMemory
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.quantize.post_training import Quantized
from torchsmith.runtime.writes import written

if TYPE_CHECKING:
    from torchsmith.runtime.compiled import CompiledModule

ROUNDS, ROUND_S, WARM_CALLS = 9, 0.005, 3
GAIN = 0.99  # of the floats' time: what eight bits may take at most, as they cost accuracy
REASON = "in floats the whole model is faster here"


def is_contested(module: CompiledModule, quantized: Quantized, config: Config, int8: Int8Abilities) -> bool:
    """Whether floats may be faster than a calibrated module's eight bits, and this machine can tell."""
    asked = int8.contested and config.build.tune and not config.quantize.require_eight_bits
    eight = any(not layer["reason"] for layer in module.report["layers"])
    return asked and eight and quantized.floats is not None and not module.missing and quantized.program.example_inputs is not None


def faster(module: CompiledModule, quantized: Quantized, finish: Callable[[Quantized], CompiledModule]) -> CompiledModule:
    """The calibrated module, or what `finish` makes of its model in floats if that is faster. The report then has both times.

    Both are timed on the inputs that the model was traced with. Where the device has no room for both, eight bits stay.
    """
    program = quantized.floats
    assert program is not None and quantized.program.example_inputs is not None
    debug.tell("the same in floats, to keep what is faster")
    reasons = {**{node.name: REASON for node in program.graph.nodes}, **quantized.kept}
    try:
        rival = finish(replace(quantized, program=program, calibration=None, kept=reasons))
        eight, floats = milliseconds((module, rival), *quantized.program.example_inputs)
    except OutOfDeviceMemory:
        return module
    best = module if eight <= GAIN * floats else rival
    best.report["contest"] = {"eight_bits_ms": round(eight, 5), "floats_ms": round(floats, 5), "kept_eight_bits": best is module}
    best.report["seconds"] = rival.report["seconds"]
    return best


def milliseconds(modules: Sequence[CompiledModule], args: Any, kwargs: Any) -> list[float]:
    """Of a call of each: medians of rounds of calls one after another, in turns."""
    own = [copy.deepcopy(m) if written(m.plan) else m for m in modules]  # calls must leave a module's state as it is

    def there(value: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: t.to(modules[0].device, copy=True), value)

    args, kwargs = there(args), there(kwargs)

    def seconds(module: Any, calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            module(*args, **kwargs)
        if modules[0].device.type == "cuda":
            torch.cuda.synchronize(modules[0].device)
        return (time.perf_counter() - started) / calls

    with torch.no_grad():
        once = [min(seconds(m, WARM_CALLS) for _ in range(2)) for m in own]
        calls = [max(1, round(ROUND_S / max(s, 1e-7))) for s in once]
        rounds = [[seconds(m, n) for m, n in zip(own, calls, strict=True)] for _ in range(ROUNDS)]
    return [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
