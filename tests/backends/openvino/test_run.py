"""Calling an engine: every dtype and shape, whose memory is whose, many callers at once, and sentences for what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset15 as ops
from torch import Tensor

from torchsmith.backends.openvino import run
from torchsmith.backends.openvino.run import DTYPES, OpenVinoRunner
from torchsmith.errors import InvalidInput, TorchsmithError

F32 = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
TYPES = {dtype: getattr(ov.Type, name) for name, dtype in DTYPES.items()}
CORE = ov.Core()


def compiled(outputs: Sequence[object], parameters: Sequence[ov.Node], **options: object) -> ov.CompiledModel:
    return CORE.compile_model(ov.Model([ops.result(o) for o in outputs], list(parameters)), "CPU", {**F32, **options})


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> ov.Node:
    return ops.parameter(ov.PartialShape(list(shape)), TYPES[dtype])


def doubling(*shape: int, **options: object) -> ov.CompiledModel:
    x = parameter(*shape)
    return compiled([ops.add(x, x)], [x], **options)


@pytest.fixture(params=["copied", "bound"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small outputs are copied, large ones bound; both must do the same."""
    monkeypatch.setattr(run, "_SMALL_BYTES", 1 << 30 if request.param == "copied" else -1)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 0)], ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...], way: str) -> None:
    x = parameter(*shape, dtype=dtype)
    flat = ops.reshape(x, np.array([-1 if 0 not in shape else 0]), False)
    runner = OpenVinoRunner(compiled([ops.convert(ops.convert(x, "f32"), TYPES[dtype]), flat], [x]))
    given = (torch.randn(shape) * 3).to(dtype)
    back, flattened = runner([given])
    assert back.dtype == flattened.dtype == dtype and back.shape == shape
    assert torch.equal(back, given) and torch.equal(flattened, given.reshape(-1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(4, 3).t(),
        lambda: torch.randn(1, 4).expand(3, 4),
        lambda: torch.randn(3, 8)[:, ::2],
        lambda: torch.randn(3, 4, requires_grad=True),
        lambda: torch.nn.Parameter(torch.randn(3, 4)),
        lambda: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
        lambda: torch.randn(14)[2:].view(3, 4),
    ],
    ids=["transposed", "expanded", "strided", "with gradient", "parameter", "negative bit", "offset"],
)
def test_any_strides_and_kinds(make: object, way: str) -> None:
    x = make()  # type: ignore[operator]
    (y,) = OpenVinoRunner(doubling(3, 4))([x])
    assert torch.equal(y, 2 * x.detach()) and not y.requires_grad


def test_in_inference_mode_and_under_a_default_device(way: str) -> None:
    runner, x = OpenVinoRunner(doubling(3, 4)), torch.randn(3, 4)
    with torch.inference_mode():
        assert torch.equal(runner([torch.ones(3, 4)])[0], torch.full((3, 4), 2.0))
    with torch.device("meta"):
        (y,) = runner([x])
    assert torch.equal(y, 2 * x)


def test_outputs_belong_to_the_caller(way: str) -> None:
    runner, inputs = OpenVinoRunner(doubling(3, 4)), [torch.randn(3, 4) for _ in range(20)]
    outputs = [runner([x])[0] for x in inputs]
    assert all(torch.equal(y, 2 * x) for x, y in zip(inputs, outputs, strict=True))
    outputs[0].zero_()
    assert torch.equal(runner(inputs[:1])[0], 2 * inputs[0])


@pytest.mark.parametrize("rows", [3, -1], ids=["static", "dynamic"])
@pytest.mark.parametrize("which", ["x", "relu, x", "x, relu", "x, x", "relu, relu", "split, x", "relu, x, relu, x", "reshaped, x"])
def test_outputs_that_are_inputs_or_each_other_share_no_memory(rows: int, which: str, way: str) -> None:
    x = parameter(rows, 4)
    one = {"x": [x], "relu": [ops.relu(x)], "split": list(ops.split(x, ops.constant(np.int64(1)), 2).outputs())}
    one["reshaped"] = [ops.reshape(x, np.array([4, -1]), False)]
    means = {
        "x": lambda a: [a],
        "relu": lambda a: [a.relu()],
        "split": lambda a: list(a.split(2, 1)),
        "reshaped": lambda a: [a.view(4, 3)],
    }
    outputs = [output for name in which.split(", ") for output in one[name]]
    a, kept = (t := torch.randn(3, 4)), t.clone()
    want = [output for name in which.split(", ") for output in means[name](kept)]
    runner = OpenVinoRunner(compiled(outputs, [x]), lambda inputs: [w.shape for w in want])
    for _ in range(2):
        given = runner([a])
        assert torch.equal(a, kept)
        assert all(map(torch.equal, given, want)) and len(given) == len(want)
        assert len({output.data_ptr() for output in (a, *given)}) == 1 + len(want)


def test_one_tensor_as_both_inputs(way: str) -> None:
    x, y = parameter(3), parameter(3)
    a = torch.randn(3)
    assert torch.equal(OpenVinoRunner(compiled([ops.multiply(x, y)], [x, y]))([a, a])[0], a * a)


def test_inputs_are_only_read(way: str) -> None:
    """Ops that OpenVINO likes to run in place, first and last in the graph."""
    x = parameter(4, 8)
    reshaped = ops.reshape(x, np.array([8, 4]), False)
    parts = ops.split(x, ops.constant(np.int64(0)), 2).outputs()
    outputs = [
        ops.relu(x),
        ops.add(reshaped, np.float32(1)),
        ops.concat(parts[::-1], 0),
        ops.exp(parts[0]),
    ]
    runner = OpenVinoRunner(compiled(outputs, [x]))
    a = torch.randn(4, 8)
    before = a.clone()
    results = runner([a])
    assert torch.equal(a, before)
    want = [a.relu(), a.view(8, 4) + 1, torch.cat([a[2:], a[:2]]), a[:2].exp()]
    assert all(torch.allclose(r, w) for r, w in zip(results, want, strict=True))
    a.zero_()  # after the call the caller may do what he likes
    assert torch.equal(results[1], before.view(8, 4) + 1)


@pytest.mark.parametrize("shapes", [None, lambda inputs: [tuple(inputs[0].shape), (inputs[0].shape[0],)]], ids=["unknown", "known"])
def test_dynamic_shapes(shapes: object, way: str) -> None:
    x = parameter(-1, 4)
    runner = OpenVinoRunner(compiled([ops.add(x, x), ops.reduce_sum(x, np.array([1]), False)], [x]), shapes)  # type: ignore[arg-type]
    for rows in (3, 1, 0, 7, 3):
        a = torch.randn(rows, 4)
        doubled, summed = runner([a])
        assert torch.equal(doubled, 2 * a) and torch.allclose(summed, a.sum(1))


def test_output_shapes_that_are_wrong_are_our_bug() -> None:
    x = parameter(-1, 4)
    for wrong in ((4, 4), (2, 4)):
        runner = OpenVinoRunner(compiled([ops.relu(x)], [x]), lambda inputs, wrong=wrong: [wrong])  # type: ignore[misc]
        with pytest.raises((AssertionError, TorchsmithError)):
            runner([torch.randn(3, 4)])


def test_which_outputs_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(*shape: int | ov.Dimension, shapes: object = None) -> bool:
        x = ops.parameter(ov.PartialShape(list(shape)), ov.Type.f32)
        return OpenVinoRunner(compiled([ops.relu(x)], [x]), shapes)._shapes is None  # type: ignore[arg-type]

    def known(inputs: Sequence[Tensor]) -> list[torch.Size]:
        return [inputs[0].shape]

    assert copies(16, 1000) and not copies(17, 1000)
    assert copies(ov.Dimension(1, 16), 1000, shapes=known) and not copies(ov.Dimension(1, 17), 1000, shapes=known)
    assert not copies(-1, 1000, shapes=known) and copies(-1, 1000)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([], "takes 2 inputs, and got 0"),
        ([torch.zeros(3, 4)] * 3, "takes 2 inputs, and got 3"),
        (
            [torch.zeros(3, 5), torch.zeros(3, 4)],
            r"input 0 is torch.float32 of shape \(3, 5\); it takes a torch.float32 tensor of shape \[3,4\]",
        ),
        ([torch.zeros(3, 4), torch.zeros(12)], r"input 1 is torch.float32 of shape \(12,\)"),
        ([torch.zeros(3, 4).double(), torch.zeros(3, 4)], "input 0 is torch.float64"),
        ([torch.zeros(3, 4).bfloat16(), torch.zeros(3, 4)], "input 0 is torch.bfloat16"),
        ([torch.zeros(3, 4, device="meta"), torch.zeros(3, 4)], "input 0 is torch.strided on meta"),
        ([torch.zeros(3, 4).to_sparse(), torch.zeros(3, 4)], "input 0 is torch.sparse_coo on cpu"),
        ([torch.zeros(3, 4), [1.0]], "input 1 is a list"),
    ],
)
def test_inputs_that_do_not_fit(inputs: list[Tensor], why: str) -> None:
    x, y = parameter(3, 4), parameter(3, 4)
    runner = OpenVinoRunner(compiled([ops.add(x, y)], [x, y]))
    with pytest.raises(InvalidInput, match=why):
        runner(inputs)
    assert torch.equal(runner([torch.ones(3, 4)] * 2)[0], torch.full((3, 4), 2.0))


def test_bfloat16_is_not_taken_for_other_16_bits() -> None:
    x = parameter(3, dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match=r"torch.float16 of shape \(3,\); it takes a torch.bfloat16"):
        OpenVinoRunner(compiled([ops.relu(x)], [x]))([torch.zeros(3).half()])


def test_sizes_out_of_range_and_failures_of_openvino_are_sentences() -> None:
    x = ops.parameter(ov.PartialShape([ov.Dimension(1, 4), 4]), ov.Type.f32)
    y = ops.parameter(ov.PartialShape([ov.Dimension(1, 4), 4]), ov.Type.f32)
    runner = OpenVinoRunner(compiled([ops.add(x, y)], [x, y]))
    with pytest.raises(InvalidInput, match=r"of shape \(5, 4\); it takes a torch.float32 tensor of shape \[1..4,4\]"):
        runner([torch.zeros(5, 4)] * 2)
    with pytest.raises(TorchsmithError, match=r"OpenVINO failed while it ran an engine: .+; run the model in PyTorch"):
        runner([torch.zeros(2, 4), torch.zeros(3, 4)])
    assert runner([torch.zeros(2, 4)] * 2)[0].shape == (2, 4)


def test_an_interruption_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, x = OpenVinoRunner(doubling(3, 4)), torch.randn(3, 4)
    runner([x])
    assert len(runner._idle) == 1
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoRunner, "_infer_copied", lambda self, request: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner([x])
    assert not runner._idle
    assert torch.equal(runner([x])[0], 2 * x) and len(runner._idle) == 1


@pytest.mark.parametrize("options", [{}, {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}], ids=["one stream", "two streams"])
def test_many_callers_at_once(options: dict[str, object], way: str) -> None:
    """Sixteen threads, each with a shape and values of its own."""
    x = parameter(-1, 64)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    y = x
    for _ in range(4):
        y = ops.tanh(ops.matmul(y, weights, False, False))
    runner = OpenVinoRunner(compiled([y], [x], **options), lambda inputs: [inputs[0].shape])
    start = threading.Barrier(16)

    def call(number: int) -> float:
        a = torch.randn(number + 1, 64)
        want = a
        for _ in range(4):
            want = torch.tanh(want @ torch.from_numpy(weights))
        start.wait()
        return max((runner([a])[0] - want).abs().max().item() for _ in range(25))

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(call, range(16))) < 1e-5
    assert 1 <= len(runner._idle) <= 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_after_a_fork() -> None:
    """One stream runs in the caller's thread, and so in the child's; several have threads that the child has not."""
    script = """
import os, signal
import openvino as ov, torch
from openvino import opset15 as ops
from torchsmith.backends.openvino.run import OpenVinoRunner
x = ops.parameter([64, 64], ov.Type.f32)
model = ov.Model([ops.matmul(x, x, False, False)], [x])
a = torch.randn(64, 64)
for streams in (1, 2):
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": 2}
    runner = OpenVinoRunner(ov.Core().compile_model(model, "CPU", options))
    want = runner([a])[0]
    if os.fork() == 0:
        signal.alarm(60)
        try:
            print(streams, "right" if torch.allclose(runner([a])[0], want) else "wrong", flush=True)
        except Exception as error:
            print(streams, type(error).__name__, error, flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "1 right" in done.stdout, done
    assert "2 TorchsmithError this engine was loaded before fork()" in done.stdout, done
