"""The op runs engines on tensors, tells their shapes without running, and lets go of them with their bytes."""

from __future__ import annotations

import copy
import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from tests.runtime.toy import BACKEND, hybrid
from torchsmith.errors import EngineMismatch, InvalidInput
from torchsmith.runtime import engines
from torchsmith.runtime.spec import EngineSpec, TensorSpec
from torchsmith.runtime.tensors import engine_tensor

op = torch.ops.torchsmith.execute_engine.default
F32 = torch.float32


def double(text: str = "") -> tuple[Tensor, str]:
    """An engine that doubles a tensor; engines with another text are other engines."""
    plan = {"weights": {}, "steps": [["aten.mul.Tensor", [{"%": 0}, 2], {}, 1]], "outputs": [1], "text": text}
    engine = json.dumps(plan).encode()
    return engine_tensor(engine), EngineSpec.of("toy", engine, [TensorSpec(("s0", 3), F32)], [TensorSpec(("s0", 3), F32)]).to_json()


def test_it_runs_and_loads_once() -> None:
    engine, spec = double("once")
    loads, x = BACKEND.loads, torch.randn(2, 3)
    for _ in range(3):
        (out,) = op([x], engine, spec)
        torch.testing.assert_close(out, 2 * x)
    (out,) = op([x], engine.clone(), spec)  # the same bytes elsewhere
    assert BACKEND.loads == loads + 1


def test_sixteen_threads_load_it_once() -> None:
    engine, spec = double("threads")
    loads, barrier, x = BACKEND.loads, threading.Barrier(16), torch.randn(2, 3)

    def call(_: int) -> Tensor:
        barrier.wait()
        return op([x], engine, spec)[0]

    with ThreadPoolExecutor(16) as pool:
        for out in pool.map(call, range(16)):
            torch.testing.assert_close(out, 2 * x)
    assert BACKEND.loads == loads + 1


def test_an_engine_goes_with_its_bytes() -> None:
    engine, spec = double("goes")
    key = ("toy", EngineSpec.from_json(spec).id, "cpu")
    op([torch.randn(2, 3)], engine, spec)
    assert key in engines._loaded and key in engines._loading
    del engine
    gc.collect()
    assert key not in engines._loaded and key not in engines._loading


def test_shapes_without_running() -> None:
    engine, spec = double()
    spec = spec.replace(
        '[{"shape": ["s0", 3], "dtype": "float32"}], "device"', '[{"shape": ["2*s0", "s0//2", 5], "dtype": "float64"}], "device"'
    )
    with torch._subclasses.FakeTensorMode() as mode:
        (out,) = op([torch.empty(7, 3)], mode.from_tensor(engine), spec)
    assert (out.shape, out.dtype) == (torch.Size([14, 3, 5]), torch.float64)
    plain = double()[1]
    traced = make_fx(lambda x, e: op([x], e, plain)[0], tracing_mode="symbolic")(torch.randn(2, 3), engine)
    (call,) = [n for n in traced.graph.nodes if n.target is op]
    assert isinstance(call.meta["val"][0].shape[0], torch.SymInt)


def test_the_op_keeps_its_contract() -> None:
    engine, spec = double()
    torch.library.opcheck(op, ([torch.randn(2, 3)], engine, spec), test_utils=("test_schema", "test_faketensor"))


def test_exported_programs_run_it() -> None:
    program = hybrid(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.randn(2, 3),), dynamic_shapes=({0: Dim("b", min=1, max=8)},))
    module, loads = program.module(), BACKEND.loads
    for batch in (1, 2, 8):
        assert module(torch.randn(batch, 3)).shape == (batch, 4)
    assert copy.deepcopy(module)(torch.randn(2, 3)).shape == (2, 4)
    assert BACKEND.loads == loads + 1


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "takes 1 tensors, and got 0"),
        (
            [torch.zeros(2, 3, 1)],
            r"input 0 of a toy engine is torch.float32 with 3 dimensions; it takes torch.float32 of shape \(s0, 3\)",
        ),
        ([torch.zeros(2, 3, dtype=torch.int64)], "input 0 of a toy engine is torch.int64 with 2 dimensions"),
    ],
)
def test_inputs_that_no_shape_fits(inputs: list[Tensor], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        op(inputs, *double())


def test_changed_bytes_are_refused() -> None:
    engine, spec = double("changed")
    engine[-3] += 1
    with pytest.raises(EngineMismatch, match="have changed since it was built; compile the model again"):
        op([torch.randn(2, 3)], engine, spec)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("backend"), "cannot be read"),
        (lambda s: s.update(backend="os.path"), "cannot be read"),
        (lambda s: s.update(id="../../x"), "cannot be read"),
        (lambda s: s["outputs"][0].update(shape=["s1", 3]), "'s1' of the size 's1' stands alone in no input's shape"),
        (lambda s: s["inputs"][0].update(shape=["2*s0", 3]), "'s0' of the size '2\\*s0' stands alone in no input's shape"),
        (lambda s: s["outputs"][0].update(shape=["__import__('os')", 3]), "is no size"),
        (lambda s: s["outputs"][0].update(dtype="load"), "is no dtype"),
        (lambda s: s.update(backend="nobody"), "built by the backend 'nobody', and this torchsmith has"),
    ],
)
def test_specs_that_make_no_sense(change: Any, sentence: str) -> None:
    engine, text = double()
    spec = json.loads(text)
    change(spec)
    with pytest.raises(EngineMismatch, match=sentence):
        op([torch.randn(2, 3)], engine, json.dumps(spec))
