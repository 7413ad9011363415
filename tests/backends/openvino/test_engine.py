"""Engines as bytes: what comes back is what went in, on the same CPU and on another; damage is told, whatever it hits."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset15 as ops

from torchsmith.backends.openvino import engine
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch, PackageError
from torchsmith.target import Target, this_cpu

HERE = this_cpu()
ELSEWHERE = replace(HERE, features=("avx2",))


def network(batch: int | ov.Dimension = 1) -> ov.Model:
    """A convolution, and a product of matrices: weights above and below what is searched for."""
    rng = np.random.default_rng(0)
    x = ops.parameter(ov.PartialShape([batch, 3, 8, 8]), ov.Type.f32)
    kernel, bias = rng.standard_normal((16, 3, 3, 3)), rng.standard_normal((1, 16, 1, 1))
    y = ops.convolution(x, kernel.astype(np.float32), [1, 1], [1, 1], [1, 1], [1, 1])
    y = ops.reduce_mean(ops.relu(ops.add(y, bias.astype(np.float32))), np.array([2, 3]), False)
    y = ops.matmul(y, rng.standard_normal((100, 16)).astype(np.float32), False, True)
    return ov.Model([ops.result(y)], [x])


def images(batch: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def result(compiled: ov.CompiledModel, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    given: np.ndarray[Any, Any] = compiled.create_infer_request().infer({0: x})[0]
    return given


@pytest.fixture(scope="module")
def packed() -> bytes:
    return engine.pack(network(), HERE, BuildConfig(), "f32", {"outputs": [[1, 100]]})


def forge(packed: bytes, change: Callable[[dict[str, Any]], None], sections: dict[str, bytes] | None = None) -> bytes:
    """The engine with another header or sections, and checksums that agree with them."""
    header, _ = engine._header(memoryview(packed))
    kept = {name: bytes(view) for name, view in engine.parse(packed).sections.items()}
    changed = engine._write({k: v for k, v in header.items() if k != "sections"}, {**kept, **(sections or {})})
    header, start = engine._header(memoryview(changed))
    change(header)
    text = json.dumps(header).encode()
    total = engine._PREFIX.size + len(text) + len(changed) - start
    prefix = engine._PREFIX.pack(engine.MAGIC, engine.FORMAT, len(text), total, hashlib.sha256(text).digest())
    return prefix + text + changed[start:]


@pytest.mark.parametrize("target", [HERE, ELSEWHERE], ids=["same cpu", "another cpu"])
def test_an_engine_computes_what_the_model_does(packed: bytes, target: Target) -> None:
    want = result(ov.Core().compile_model(network(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), images())
    np.testing.assert_allclose(result(engine.unpack(packed, target), images()), want, rtol=1e-5, atol=1e-6)


def test_the_same_cpu_compiles_nothing(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_rebuild", None)
    engine.unpack(packed, replace(HERE, chip="by another name"))


@pytest.mark.parametrize("change", ["cpu", "version", "refused by OpenVINO"])
def test_elsewhere_the_portable_form_is_compiled(packed: bytes, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    rebuilt = []
    rebuild = engine._rebuild
    monkeypatch.setattr(engine, "_rebuild", lambda *args: rebuilt.append(1) or rebuild(*args))
    if change == "version":
        packed = forge(packed, lambda header: header.update(openvino="2025.0.0"))
    if change == "refused by OpenVINO":  # for a reason that it alone knows: here, bytes that are no compiled model
        packed = forge(packed, lambda header: None, {"compiled": bytes(len(engine.parse(packed).sections["compiled"]))})
    engine.unpack(packed, ELSEWHERE if change == "cpu" else HERE)
    assert rebuilt


def test_an_engine_for_another_cpu_is_only_portable() -> None:
    packed = engine.pack(network(), ELSEWHERE, BuildConfig(), "f32")
    read = engine.parse(packed)
    assert set(read.sections) == {"model", "rest"} and read.target == ELSEWHERE
    np.testing.assert_allclose(result(engine.unpack(packed, HERE), images()), result(engine.unpack(packed, ELSEWHERE), images()))


def test_weights_are_in_the_engine_once() -> None:
    x = ops.parameter([1, 512], ov.Type.f32)
    weights = np.random.default_rng(0).standard_normal((4, 512, 512)).astype(np.float32)
    y = x
    for w in weights:
        y = ops.relu(ops.matmul(y, w, False, True))
    packed = engine.pack(ov.Model([y], [x]), HERE, BuildConfig(), "f32")
    assert len(packed) < 1.02 * weights.nbytes
    x = np.ones((1, 512), np.float32)
    assert np.array_equal(result(engine.unpack(packed, HERE), x), result(engine.unpack(packed, ELSEWHERE), x))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_settings_survive(precision: str, hint: str) -> None:
    packed = engine.pack(network(), HERE, BuildConfig(performance_hint=hint, num_threads=1), precision, {"inputs": ["s0"]})
    for target in (HERE, ELSEWHERE):
        compiled = engine.unpack(packed, target)
        assert str(compiled.get_property("PERFORMANCE_HINT")).endswith(hint.upper())
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        # OpenVINO takes bf16 for a wish where the CPU has none
        assert precision == "bf16" or compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    read = engine.parse(packed)
    assert engine.unpack(read, HERE).get_property("INFERENCE_NUM_THREADS") == 1
    assert (read.precision, read.performance_hint, read.num_threads) == (precision, hint, 1)
    assert read.extra == {"inputs": ["s0"]} and read.openvino == ov.get_version()


@pytest.mark.parametrize(
    ("asked", "torch_has", "want"),
    [
        (0, 4, {}),
        (0, 8, {}),
        (0, 1, {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}),
        (2, 4, {"INFERENCE_NUM_THREADS": 2, "ENABLE_CPU_PINNING": False}),
        (4, 1, {"INFERENCE_NUM_THREADS": 4}),
    ],
)
def test_threads(packed: bytes, monkeypatch: pytest.MonkeyPatch, asked: int, torch_has: int, want: dict[str, Any]) -> None:
    """With all cores to itself the engine has OpenVINO's own choices; with fewer, it leaves open which."""
    monkeypatch.setattr(engine, "_cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: torch_has)
    options = engine._properties(replace(engine.parse(packed), num_threads=asked))
    assert {k: v for k, v in options.items() if k in ("INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING")} == want


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= engine._cores() <= (os.cpu_count() or 1)


def test_dynamic_models_stay_dynamic() -> None:
    packed = engine.pack(network(ov.Dimension(1, 16)), HERE, BuildConfig(), "f32")
    one, other = engine.unpack(packed, HERE), engine.unpack(packed, ELSEWHERE)
    for batch in (1, 16, 5):
        assert np.array_equal(result(one, images(batch)), result(other, images(batch)))


def test_memory_is_used_in_place_and_kept(packed: bytes) -> None:
    for memory in (packed, memoryview(bytearray(packed))):
        compiled = engine.unpack(memory, HERE)
        assert np.shares_memory(compiled.torchsmith_memory, np.frombuffer(memory, np.uint8))
    for target in (HERE, ELSEWHERE):
        compiled = engine.unpack(bytes(bytearray(packed)), target)
        want = result(engine.unpack(packed, target), images())
        gc.collect()
        _ = [bytearray(len(packed)) for _ in range(8)]  # what was freed would be overwritten
        assert np.array_equal(result(compiled, images()), want)


def test_cut_anywhere_is_told(packed: bytes) -> None:
    for length in {0, 1, 7, 8, 55, 56, 57, 300, len(packed) // 2, len(packed) - 1}:
        with pytest.raises(PackageError, match=r"damaged: it has \d+ bytes of \d+|no OpenVINO engine"):
            engine.unpack(packed[:length], HERE)
    with pytest.raises(PackageError, match="bytes of"):
        engine.unpack(packed + b"\0", HERE)


def test_every_byte_is_checked(packed: bytes) -> None:
    read = engine.parse(packed)
    edges = [len(packed) - len(read.sections[name]) for name in read.sections]
    for at in {*range(engine._PREFIX.size + 20), *range(60, len(packed), 997), *edges, len(packed) - 1}:
        damaged = bytearray(packed)
        damaged[at] ^= 0x41
        with pytest.raises((PackageError, EngineMismatch)):
            engine.unpack(bytes(damaged), HERE)


@pytest.mark.parametrize("foreign", [b"PK\x03\x04" + bytes(100), b"", b"\x7fELF" * 30])
def test_what_is_no_engine_is_told(foreign: bytes) -> None:
    with pytest.raises(PackageError, match="no OpenVINO engine"):
        engine.parse(foreign)


def test_newer_formats_and_other_devices_are_mismatches(packed: bytes) -> None:
    newer = bytearray(packed)
    newer[8:12] = (engine.FORMAT + 1).to_bytes(4, "little")
    with pytest.raises(EngineMismatch, match=r"format 2.*update torchsmith"):
        engine.parse(bytes(newer))
    with pytest.raises(EngineMismatch, match="compile the model for cuda"):
        engine.unpack(packed, Target("cuda", "sm_90"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda h: h["sections"].update(rest=[0, 10**9, ""]), "'rest' reaches beyond its end"),
        (lambda h: h["sections"].update(rest=[-1, 1, ""]), "'rest' reaches beyond its end"),
        (lambda h: h["sections"].pop("model"), "no portable model"),
        (lambda h: h["sections"].update(rest="all of it"), "makes no sense"),
        (lambda h: h["spans"].append([0, 10**9, "rest", 0]), "beyond section 'rest'"),
        (lambda h: h["spans"].append([0, 1, "elsewhere", 0]), "beyond section 'elsewhere'"),
        (lambda h: h["spans"].append([0, -5, "rest", 9]), "beyond section 'rest'"),
        (lambda h: h["spans"].append(3), "makes no sense"),
        (lambda h: h.pop("target"), "makes no sense"),
        (lambda h: h.update(num_threads="many"), "makes no sense"),
    ],
)
def test_headers_that_lie_are_told(packed: bytes, change: Callable[[dict[str, Any]], None], why: str) -> None:
    with pytest.raises(PackageError, match=why):
        engine.unpack(forge(packed, change), ELSEWHERE)


def test_a_portable_model_that_cannot_be_used_is_told(packed: bytes) -> None:
    xml = zlib.decompress(engine.parse(packed).sections["model"]).replace(b'type="ReLU"', b'type="ReZU"')
    forged = forge(packed, lambda header: None, {"model": zlib.compress(xml)})
    with pytest.raises(EngineMismatch, match=r"cannot be compiled for .* with OpenVINO .*; compile the model again here"):
        engine.unpack(forged, ELSEWHERE)
    with pytest.raises(PackageError, match="cannot be inflated"):
        engine.unpack(forge(packed, lambda header: None, {"model": b"no zlib"}), ELSEWHERE)


def matrices(dtype: ov.Type = ov.Type.f32, shape: tuple[int, ...] = (1, 64)) -> ov.Model:
    x = ops.parameter(ov.PartialShape(list(shape)), dtype)
    return ov.Model([ops.matmul(x, ops.constant(np.ones((64, 64)), dtype), False, True)], [x])


@pytest.mark.parametrize(
    ("model", "precision", "shapes", "timed"),
    [
        (matrices(), "bf16", None, True),
        (matrices(ov.Type.bf16), "f32", None, True),
        (matrices(), "f32", None, False),
        (matrices(shape=(-1, 64)), "bf16", None, False),
        (matrices(shape=(-1, 64)), "bf16", [[8, 64]], True),
        (network(), "bf16", None, False),
    ],
)
@pytest.mark.parametrize("faster", [True, False])
def test_the_partitioner_is_chosen_by_time(
    model: ov.Model, precision: str, shapes: Any, timed: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_least_seconds", lambda candidates, shapes: [1.0, 0.9 if faster else 0.96])
    read = engine.parse(engine.pack(model, HERE, BuildConfig(), precision, shapes=shapes))
    assert read.partitioner == ("AUTO" if timed and faster else engine.DEFAULT)


def test_timing_runs_every_kind_of_input() -> None:
    ids = ops.parameter([2, 3], ov.Type.i64)
    x = ops.gather(ops.constant(np.ones((10, 8), np.float32)), ids, ops.constant(np.int64(0)))
    compiled = ov.Core().compile_model(ov.Model([x], [ids]), "CPU")
    assert all(0 < seconds < 10 for seconds in engine._least_seconds([compiled, compiled], [[2, 3]], 0.0))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_weights_come_back_from_wherever_they_stand(data: st.DataObject) -> None:
    """Whatever the compiled model has of them, in whatever order, and whatever the list of constants leaves out."""
    sizes = data.draw(st.lists(st.integers(0, 5000), max_size=8))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    alike = data.draw(st.booleans())
    chunks = [bytes(size) if alike and size % 2 else rng.bytes(size) for size in sizes]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    listed = [(start, size) for start, size in zip(starts, sizes, strict=True) if data.draw(st.booleans())]
    inside = data.draw(st.permutations([chunk for chunk in chunks if data.draw(st.booleans())]))
    weights, compiled = b"".join(chunks), b"<".join(inside)
    spans, rest = engine._spans(listed, weights, compiled)
    back = bytearray(len(weights))
    for first, size, name, at in spans:
        back[first : first + size] = {"compiled": compiled, "rest": rest}[name][at : at + size]
    assert bytes(back) == weights and sum(size for _, size, _, _ in spans) == len(weights)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_loading_after_a_fork_is_refused_not_hung(packed: bytes, tmp_path: Any) -> None:
    (tmp_path / "engine").write_bytes(packed)
    script = """
import os, signal, sys
from torchsmith.backends.openvino import engine
from torchsmith.target import this_cpu
packed = open(sys.argv[1], "rb").read()
if os.fork() == 0:  # before any engine was loaded: allowed
    signal.alarm(60)
    engine.unpack(packed, this_cpu())
    print("loaded in the child", flush=True)
    os._exit(0)
os.wait()
engine.unpack(packed, this_cpu())
if os.fork() == 0:
    signal.alarm(60)
    try:
        engine.unpack(packed, this_cpu())
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "engine")], capture_output=True, text=True, timeout=120)
    assert "loaded in the child" in run.stdout and "TorchsmithError this process was forked" in run.stdout, run
