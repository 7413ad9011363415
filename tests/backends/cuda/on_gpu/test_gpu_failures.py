"""What goes wrong is said in a sentence, and leaves modules that work, or that say again what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from tests.backends.cuda.on_gpu.nets import Cnn, fast, images, made, needs_gpu
from torchsmith import backends
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch, OutOfDeviceMemory
from torchsmith.ir.builder import Builder
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.unary import Unary
from torchsmith.runtime.tensors import to_bytes

pytestmark = needs_gpu


def engine_of(module: nn.Module) -> bytes:
    program = fast(module, [images()]).program
    return to_bytes(program.constants["engine_0"])


@pytest.fixture(scope="module")
def engine() -> bytes:
    return engine_of(made(Cnn))


def edited(engine: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The engine with another plan."""
    size = int.from_bytes(engine[:8], "little")
    header = json.loads(engine[8 : 8 + size])
    plan = json.loads(header["__metadata__"]["plan"])
    change(plan)
    header["__metadata__"]["plan"] = json.dumps(plan)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + engine[8 + size :]


def load(engine: bytes) -> Any:
    return BACKEND.load(engine, backends.target_of("cuda"))


def test_as_it_is_it_loads(engine: bytes) -> None:
    (y,) = load(edited(engine, lambda plan: None))([images()])
    assert y.shape == (2, 10)


@pytest.mark.parametrize("arch", ["sm_75", "sm_100", "sm_120"])
def test_an_engine_for_another_gpu(engine: bytes, arch: str) -> None:
    major, minor = torch.cuda.get_device_capability()
    if arch == f"sm_{major}{minor}":
        pytest.skip("that is this one")
    with pytest.raises(
        EngineMismatch, match=rf"built for {arch}, and this GPU \(.*\) is sm_{major}{minor}; compile the model here"
    ):
        load(edited(engine, lambda plan: plan["target"].update(arch=arch)))


def test_machine_code_that_is_damaged(engine: bytes) -> None:
    start = engine.index(b"\x7fELF")
    for damaged in (
        engine[:start] + bytes(64) + engine[start + 64 :],
        engine[:start] + bytes(2048) + engine[start + 2048 :],
    ):
        with pytest.raises(EngineMismatch, match=r"the CUDA driver could not|no cuda engine"):
            load(damaged)
    assert load(engine)([images()])[0].shape == (2, 10), "the device works as before"


def test_a_kernel_that_is_not_in_its_code(engine: bytes) -> None:
    def rename(plan: dict[str, Any]) -> None:
        plan["kernels"][0]["symbol"] = "nothing_of_the_kind"

    with pytest.raises(EngineMismatch, match="could not find the kernel nothing_of_the_kind in its code"):
        load(edited(engine, rename))


@contextmanager
def little_memory(free_bytes: int) -> Iterator[None]:
    """PyTorch may have this much more than it has now."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + free_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def wide(rows: int, width: int) -> bytes:
    """x: (rows, width) -> relu(x @ w.T), twice."""
    with Builder() as b:
        x = b.input(TensorType((rows, width), torch.float16))
        weights = [b.constant(torch.randn(width, width).half() / width**0.5, "w") for _ in range(2)]
        for weight in weights:
            x = Unary("relu")(Linear()(x, weight))
        graph = b.finish([x])
    return BACKEND.build(graph, backends.target_of("cuda"), BuildConfig(tune=False))


def test_no_memory_for_the_weights() -> None:
    engine = wide(16, 4096)  # 64 MiB of weights
    with (
        little_memory(16 << 20),
        pytest.raises(OutOfDeviceMemory, match=r"no memory for its weights: .* MiB are free; use a smaller"),
    ):
        load(engine)
    load(engine)


def test_no_memory_for_a_call() -> None:
    engine = wide(1 << 17, 512)  # 128 MiB an activation
    x = torch.randn(1 << 17, 512, device="cuda").half()
    with little_memory(64 << 20):
        run = load(engine)
        for _ in range(2):
            with pytest.raises(OutOfDeviceMemory, match=r"the GPU has no memory for .* MiB are free; use a smaller batch"):
                run([x])
    other = -x
    wanted = run([other])[0].clone(), run([x])[0].clone()
    with little_memory(16 << 20), pytest.raises(OutOfDeviceMemory, match="the GPU has no memory for"):
        kept = [run([given])[0] for given in (x, other, other)]  # outputs are the user's
        del kept
    assert torch.equal(run([other])[0], wanted[0]), "the graph still read the input of the call before"
    assert torch.equal(run([x])[0], wanted[1])


def test_a_module_whose_first_call_had_no_memory() -> None:
    model = made(Cnn)
    x = images(16, 512)  # its activations fit in no piece that PyTorch may have left
    module = fast(model, [x])
    with little_memory(1 << 20), pytest.raises(OutOfDeviceMemory):
        module(x)
    y = module(x)
    assert torch.isfinite(y).all() and torch.equal(module(x), y)
