"""TensorRT's engines on a GPU: `make tensorrt` runs these, and they say whether the backend is right on a machine.

On a GPU that the installed TensorRT does not take, the refusal alone is tested.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from tests.backends.cuda.on_gpu.nets import BFLOAT, FLOAT, HALF, Bert, Cnn, Vit, double, error, images, made, right, words
from torchsmith.backends import target_of
from torchsmith.backends.tensorrt.backend import BACKEND
from torchsmith.backends.tensorrt.library import installed, title
from torchsmith.config import BuildConfig
from torchsmith.errors import BackendUnavailable, EngineMismatch, InvalidInput
from torchsmith.ir.builder import Builder
from torchsmith.ir.types import TensorType
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.target import Target

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(installed() is None, reason="TensorRT is not installed"),
]


@functools.cache
def refusal() -> str:
    """Why there are no engines for this GPU; empty where there are."""
    try:
        fast(nn.Linear(8, 8).cuda().eval(), torch.ones(2, 8, device="cuda"))
    except (BackendUnavailable, EngineMismatch) as refused:
        return str(refused)
    return ""


@pytest.fixture
def taken() -> None:
    if refusal():
        pytest.skip(refusal())


def fast(model: nn.Module, *inputs: Any, dtype: torch.dtype = HALF, **options: Any) -> CompiledModule:
    compiled = torchsmith.compile(
        model,
        inputs=list(inputs),
        enabled_precisions={dtype} | options.pop("also", set()),
        backend="tensorrt",
        require_full_compilation=True,
        min_block_size=1,
        **options,
    )
    assert isinstance(compiled, CompiledModule)
    return compiled


def test_a_gpu_is_taken_or_refused_in_a_sentence() -> None:
    if why := refusal():
        major, minor = torch.cuda.get_device_capability()
        assert f"compute capability {major}.{minor}" in why and "backend='cuda'" in why


def test_an_engine_for_other_gpus_is_refused_in_tensorrts_own_words() -> None:
    """TensorRT-RTX itself is asked to load it, as where a program comes from another machine."""
    if not refusal():
        pytest.skip("TensorRT takes this GPU")
    with Builder({}) as b:
        graph = b.finish([b.input(TensorType((2, 3), HALF))])
    engine = BACKEND.build(graph, Target("cuda", "sm_89"), BuildConfig())
    with pytest.raises(EngineMismatch) as refused:
        BACKEND.load(engine, target_of("cuda"))
    major, minor = torch.cuda.get_device_capability()
    assert str(refused.value).startswith(
        f"{title()} does not run on this GPU ({torch.cuda.get_device_name()}), which has compute capability {major}.{minor}: "
    )
    assert str(refused.value).endswith("Compile the model with backend='cuda', torchsmith's own engine, which runs on it")


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT], ids=["f16", "bf16", "f32"])
@pytest.mark.parametrize("kind", [Cnn, Vit, Bert], ids=["cnn", "vit", "bert"])
def test_models(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model = made(kind)
    inputs = words() if kind is Bert else (images(),)
    compiled = fast(model, *inputs, dtype=dtype)
    for _ in range(3):  # plain, recorded, replayed
        right(compiled(*inputs), model, *inputs, dtype=dtype)


@pytest.mark.usefixtures("taken")
def test_dynamic_batch() -> None:
    model = made(Cnn)
    shapes = {"min_shape": (1, 3, 32, 32), "opt_shape": (4, 3, 32, 32), "max_shape": (8, 3, 32, 32)}
    compiled = fast(model, torchsmith.Input(**shapes))
    for batch in (1, 8, 3, 8):
        right(compiled(images(batch)), model, images(batch))
    with pytest.raises(InvalidInput):
        compiled(images(9))


@pytest.mark.usefixtures("taken")
def test_int8() -> None:
    model, x = made(Cnn), images(4)
    calibrator = DataLoaderCalibrator([images(8, seed=2), images(8, seed=3)])
    compiled = fast(model, x, also={torch.int8}, calibrator=calibrator)
    assert error(compiled(x), double(model, x)) < 0.1


@pytest.mark.usefixtures("taken")
def test_saved_and_loaded(tmp_path: Path) -> None:
    x = images()
    compiled = fast(made(Cnn), x)
    torchsmith.save(compiled, tmp_path / "cnn.pt2")
    assert torch.equal(torchsmith.load(tmp_path / "cnn.pt2")(x), compiled(x))


@pytest.mark.usefixtures("taken")
def test_outputs_stay_and_streams_may_change() -> None:
    compiled = fast(made(Cnn), images())
    inputs = [images(seed=seed) for seed in range(8)]
    wanted = [compiled(x).clone() for x in inputs]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            found[number] = compiled(inputs[number])
            torch.cuda.current_stream().synchronize()

    for _ in range(4):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[number], wanted[number]) for number in range(len(inputs)))


@pytest.mark.usefixtures("taken")
def test_modes_and_layouts_of_inputs_do_not_matter() -> None:
    compiled, x = fast(made(Cnn), images(4)), images(4)
    wanted = compiled(x)
    with torch.inference_mode():
        assert torch.equal(compiled(x), wanted)
    assert torch.equal(compiled(x.contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(compiled(images(8)[::2].copy_(x)), wanted)


@pytest.mark.usefixtures("taken")
def test_in_a_graph_of_the_users() -> None:
    compiled, x, other = fast(made(Cnn), images()), images(seed=3), images(seed=4)
    wanted = compiled(other)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            y = compiled(x)
    except EngineMismatch as refused:
        assert "call the module outside of it" in str(refused)
        pytest.skip(str(refused))
    x.copy_(other)
    graph.replay()
    assert torch.equal(y, wanted)


@pytest.mark.usefixtures("taken")
def test_inspected() -> None:
    runner: Any = fast(made(Cnn), images()).engines[0].runner
    assert "Layers" in runner.inspect()
