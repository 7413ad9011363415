"""Small models on the GPU are as right as PyTorch's own in the same precision, at every size, however they are called."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchsmith
from tests.backends.cuda.on_gpu.nets import (
    BFLOAT,
    FLOAT,
    HALF,
    Bert,
    Cnn,
    Vit,
    double,
    error,
    fast,
    images,
    made,
    needs_gpu,
    right,
    words,
)  # fmt: skip
from torchsmith.errors import InvalidInput
from torchsmith.runtime.compiled import CompiledModule

pytestmark = needs_gpu
DTYPES = pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT], ids=["f16", "bf16", "f32"])


@DTYPES
@pytest.mark.parametrize("kind", [Cnn, Vit], ids=["cnn", "vit"])
def test_of_images(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model, x = made(kind), images()
    module = fast(model, [x], dtype)
    for seed in (1, 2, 3):
        x = images(seed=seed)
        right(module(x), model, x, dtype=dtype)


@DTYPES
def test_of_words(dtype: torch.dtype) -> None:
    model = made(Bert)
    module = fast(model, words(), dtype)
    for seed in (1, 2):
        ids, mask = words(seed=seed)
        right(module(ids, mask), model, ids, mask, dtype=dtype)


def first_and_second(module: CompiledModule, *inputs: Tensor) -> tuple[float, float]:
    """Milliseconds of a call with a size that was not met before, and of one after."""
    took = []
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        module(*inputs)
        torch.cuda.synchronize()
        took.append(1e3 * (time.perf_counter() - started))
    return took[0], took[1]


def test_every_batch_in_its_range() -> None:
    model = made(Cnn)
    module = fast(model, [torchsmith.Input((Dim("batch", min=1, max=9), 3, 32, 32))])
    for batch in (1, 9, 4, 3, 9):
        x = images(batch, seed=batch)
        print(f"batch {batch}: {first_and_second(module, x)[0]:.1f} ms for the first call")
        right(module(x), model, x)
    with pytest.raises(InvalidInput, match=r"10.*out of its range 1\.\.9"):
        module(images(10))
    with pytest.raises(InvalidInput, match=r"0.*out of its range 1\.\.9"):
        module(images(1)[:0])


def test_every_batch_and_length_in_their_ranges() -> None:
    model = made(Bert)
    given = torchsmith.Input((Dim("batch", min=1, max=4), Dim("tokens", min=2, max=48)), dtype=torch.int64)
    module = fast(model, [given, given])
    for batch, length in ((1, 2), (4, 48), (1, 48), (3, 17), (4, 2)):
        ids, mask = words(batch, length)
        print(f"{batch} of {length}: {first_and_second(module, ids, mask)[0]:.1f} ms for the first call")
        right(module(ids, mask), model, ids, mask)
    with pytest.raises(InvalidInput, match=r"49.*out of its range 2\.\.48"):
        module(*words(1, 49))


def test_more_sizes_than_are_kept() -> None:
    model = made(Cnn)
    module = fast(model, [torchsmith.Input((Dim("batch", min=1, max=40), 3, 32, 32))])
    wanted = {batch: module(images(batch)) for batch in range(1, 21)}
    for batch in (1, 20, 2):
        assert torch.equal(module(images(batch)), wanted[batch])
        assert error(module(images(batch)), double(model, images(batch))) < 5e-3


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=["f16", "f32"])
def test_a_package_gives_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    model, x = made(Cnn), images()
    module = fast(model, [x], dtype)
    torchsmith.save(module, tmp_path / "m.pt2")
    started = time.perf_counter()
    again = torchsmith.load(tmp_path / "m.pt2")
    print(f"loaded in {1e3 * (time.perf_counter() - started):.1f} ms, {(tmp_path / 'm.pt2').stat().st_size >> 10} KiB")
    assert torch.equal(again(x), module(x))
    assert torch.equal(again.program.module()(x), module(x))


def test_one_that_was_built_on_the_cpu_comes_to_the_gpu(tmp_path: Path) -> None:
    """As on a machine without a GPU: `target` alone, a model on the CPU, ops around the engine."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made(Cnn).cpu()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.count.add_(1)
            return torch.erfinv(torch.sigmoid(self.net(x)) / 2) + torch.arange(10, device=x.device), self.count * 2

    major, minor = torch.cuda.get_device_capability()
    options = {"target": f"sm_{major}{minor}", "torch_executed_ops": {"aten.erfinv", "aten.arange"}, "min_block_size": 1}
    module = torchsmith.compile(Around().eval(), inputs=[images().cpu()], enabled_precisions={HALF}, tune=False, **options)
    assert isinstance(module, CompiledModule)
    first, count = module(images())
    assert first.is_cuda and count.item() == 2
    torchsmith.save(module, tmp_path / "m.pt2")
    again = torchsmith.load(tmp_path / "m.pt2")
    given, count = again(images())
    assert torch.equal(given, first) and given.is_cuda and count.item() == 4
    given, _ = again.program.module()(images())
    assert torch.equal(given, first)
