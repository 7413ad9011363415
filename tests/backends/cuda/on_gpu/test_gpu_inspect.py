"""Steps of an engine, measured where it runs."""

from __future__ import annotations

import torch

import torchsmith
from tests.backends.cuda.on_gpu.nets import Cnn, Vit, fast, images, made, needs_gpu
from torchsmith.backends.cuda.inspect import profile, symbols_of
from torchsmith.backends.cuda.plan import read
from torchsmith.runtime.compiled import CompiledModule

pytestmark = needs_gpu


def engine_of(module: CompiledModule) -> bytes:
    (call,) = module.plan.engine_calls
    return bytes(module.program.constants[call.constant].cpu().numpy().tobytes())


def test_every_step_takes_its_time_and_the_sum_is_that_of_the_run() -> None:
    module = fast(made(Vit), [images()])
    found = profile(engine_of(module), {}, measure=True)
    assert found.chip == torch.cuda.get_device_name() and all(row.timed == "measured" for row in found.rows)
    summed = sum(row.microseconds or 0.0 for row in found.rows)
    module(images())
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(100):
        module(images())
    last.record()
    torch.cuda.synchronize()
    assert 0 < summed < 3 * 10 * first.elapsed_time(last), "a call cannot be far quicker than its steps"


def test_a_dynamic_engine_at_two_sizes() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    engine = engine_of(fast(made(Cnn), [torchsmith.Input((batch, 3, 32, 32))]))
    (name,) = symbols_of(read(engine)[0])
    small, large = (profile(engine, {name: size}, measure=True) for size in (1, 64))
    assert sum(r.bytes for r in large.rows) > sum(r.bytes for r in small.rows)
    assert all(row.microseconds is not None for row in (*small.rows, *large.rows))
