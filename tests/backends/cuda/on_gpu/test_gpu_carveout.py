"""Engines whose kernels ask for one split of the SMs' memory, and engines that leave it to the driver."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.backends.cuda.on_gpu.nets import Cnn, fast, images, made, needs_gpu
from torchsmith.backends.cuda import carveout, plan
from torchsmith.backends.cuda.run import CudaRunner, Instance, functions_of
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.tensors import to_bytes

pytestmark = needs_gpu


def bytes_of(compiled: CompiledModule) -> bytes:
    (call,) = compiled.plan.engine_calls
    return to_bytes(compiled.program.constants[call.constant])


def test_both_splits_give_the_same() -> None:
    x = images()
    compiled = fast(made(Cnn), [x])
    runner = compiled.engines[0].runner
    assert isinstance(runner, CudaRunner) and list(runner.functions) == [carveout.SHARED]
    _, tensors = plan.read(bytes_of(compiled))
    runner.functions[None] = functions_of(runner.plan, tensors)
    free = Instance(runner, {}, replace(runner.plan.variants[0], carveout=None))
    assert torch.equal(free([x])[0], compiled(x)) and torch.equal(free([x])[0], compiled(x))


def test_both_are_timed() -> None:
    engine = bytes_of(fast(made(Cnn), [images()]))
    times = carveout.measured(engine, 0, {}, plan.read(engine)[0].target)
    assert set(times) == {None, carveout.SHARED} and all(0 < seconds < 0.1 for seconds in times.values())
