"""The GPU's benchmark, tried on the CPU: its road, its processes, its limits, its report."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchsmith.bench import files, gpu
from torchsmith.bench.gpu import GpuOptions, compare_on_gpu, failures, main, run_on_gpu
from torchsmith.bench.gpu_report import best_peer
from torchsmith.bench.gpu_sides import GPU_BUILDERS, convolutional, eager, half_precision
from torchsmith.bench.measure import Stats
from torchsmith.bench.models import Inputs, load
from torchsmith.bench.report import Report, Row
from torchsmith.bench.sides import Builder, Built
from torchsmith.bench.station import Lost, Remote, Station, Task
from torchsmith.errors import InvalidOption

NETS = f"{Path(__file__).parent / 'nets.py'}:conv"
QUICK = GpuOptions((NETS,), (1,), ("eager", "torchsmith"), "bf16", seconds=0.05, device="cpu")


def wrong(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    right = eager(module, inputs, precision)
    return dataclasses.replace(right, bind=lambda given: lambda: right.bind(given)() * 1.1)


def broken(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    raise RuntimeError("no kernel for this\nand a long trace")


def compared(ours: Builder, options: GpuOptions = QUICK) -> Report:
    place = {side: Station({"eager": eager, "torchsmith": ours}) for side in options.sides}
    return compare_on_gpu(options, place, lambda report, rows: None)


def test_both_times_are_taken_and_speed_is_counted_in_the_devices() -> None:
    report = compared(eager)
    base, ours = report.rows
    assert (base.precision, ours.precision) == ("f32", "bf16")
    assert ours.stats is not None and ours.stream is not None and ours.median_ms == ours.stream.median_ms
    assert ours.error is not None and ours.tolerance == pytest.approx(1.1 * ours.error), "our side is eager here"
    assert failures(report) == []


@pytest.mark.parametrize(("ours", "why"), [(wrong, "wrong: relative error"), (broken, "RuntimeError: no kernel for this")])
def test_our_failure_is_a_row_and_a_sentence(ours: Builder, why: str) -> None:
    report = compared(ours)
    base, row = report.rows
    assert base.stream is not None and row.stream is None and row.why.startswith(why)
    assert failures(report) == [f"{NETS}, batch 1: {row.why}"]


def test_a_side_that_is_lost_while_it_is_timed_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: Station, calls: int) -> float:
        raise Lost("its process ended with status -11")

    monkeypatch.setattr(Station, "stream", lose)
    assert {row.why for row in compared(eager).rows} == {"its process ended with status -11"}


def test_lines_and_a_file_after_every_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", NETS, "--batch", "1,3", "--sides", "eager,torchsmith", "--precision", "bf16", "--device", "cpu"]
    into = ["--out", str(tmp_path / "new"), "--in-process"]
    assert main([*arguments, "--seconds", "0.05", *into]) == 0
    *rows, last = map(json.loads, capfd.readouterr().out.splitlines())
    assert [(row["batch"], row["side"]) for row in rows] == [(1, "eager"), (1, "torchsmith"), (3, "eager"), (3, "torchsmith")]
    assert all(row["stream_ms"] > 0 and row["wall_ms"] > 0 for row in rows) and last["machine"]["packages"]["torch"]
    (file,) = (tmp_path / "new").glob("*.json")
    assert len(files.read(file).rows) == 4
    assert main(["--models", NETS, "--batch", "3,4", "--sides", "eager", *arguments[6:], "--seconds", "0.05", *into]) == 0
    rows_then = [(row.batch, row.side) for row in files.read(file).rows]
    assert rows_then == [(1, "eager"), (1, "torchsmith"), (3, "eager"), (4, "eager")], "a case is of one run"


def test_the_usual_models_have_the_usual_batches() -> None:
    assert GpuOptions().cases()[:2] == [("efficientnet_b0", 1), ("efficientnet_b0", 128)] and len(GpuOptions().cases()) == 10
    assert GpuOptions(("resnet18",)).cases() == [("resnet18", 1), ("resnet18", 32)]


@pytest.mark.parametrize("precision", ["int8", "f8"])
def test_eight_bits_beside_half_precision(precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", NETS, "--batch", "2", "--sides", "torchsmith", "--precision", precision, "--device", "cpu"]
    assert main([*arguments, "--seconds", "0.05", "--in-process", "--compile", '{"backend": "reference"}']) == 0
    ours, rounded, _ = map(json.loads, capfd.readouterr().out.splitlines())
    assert (ours["side"], ours["precision"], rounded["side"], rounded["precision"]) == (
        "torchsmith", "f16", f"torchsmith-{precision}", precision
    )  # fmt: skip
    assert ours["error"] < rounded["error"] <= rounded["tolerance"] == gpu.TOLERANCE[precision] and rounded["stream_ms"] > 0
    assert rounded["note"].endswith("calibrated with 4 items")


def test_both_eight_bits_beside_half_precision() -> None:
    options = GpuOptions(sides=("eager", "torchsmith", "torchsmith-int8"), precision="f8").with_eight_bits()
    assert [options.precision_of(side) for side in options.sides] == ["f32", "f16", "int8", "f8"]
    assert options.with_eight_bits() == options


def test_int8_is_no_peer_of_our_own() -> None:
    row = Row("net", 1, "f16", "torchsmith", stream=Stats.of([2.0]))
    rows = (
        row,
        dataclasses.replace(row, side="torchsmith-int8", stream=Stats.of([1.0])),
        dataclasses.replace(row, side="inductor"),
    )
    best = best_peer(dataclasses.replace(compared(eager), rows=rows), row)
    assert best is not None and best.side == "inductor"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_a_sentence() -> None:
    with pytest.raises(InvalidOption, match="PyTorch finds no GPU here"):
        run_on_gpu(GpuOptions())


def test_an_unknown_side_is_a_sentence() -> None:
    with pytest.raises(InvalidOption, match=r"no side 'tensorrt' on a GPU; it has eager, torchscript"):
        run_on_gpu(dataclasses.replace(QUICK, sides=("tensorrt",)))


def serve_slowly(pipe: Any) -> None:
    pipe.recv()
    time.sleep(60)


def serve_and_die(pipe: Any) -> None:
    pipe.recv()
    os._exit(7)


@pytest.mark.parametrize(
    ("serve", "why"), [(serve_slowly, "it was not done after 1 s"), (serve_and_die, "its process ended with status 7")]
)
def test_a_process_that_does_not_answer(serve: Any, why: str) -> None:
    remote = Remote(serve, "fork")
    assert remote.build(Task(NETS, 1, "eager", "f32", "cpu"), 1.0 if serve is serve_slowly else 0.0).why == why


def test_a_process_of_its_own_builds_and_times() -> None:
    remote = Remote()
    try:
        found = remote.build(Task(NETS, 2, "eager", "bf16", "cpu"), 120)
        assert found.why == "" and found.items == 2 and found.error == found.eager_error
        assert len(remote.wall(3)) == 3 and remote.stream(3) > 0
        remote.forget()
    finally:
        remote.close()


def test_peers_get_what_they_like() -> None:
    module, given = half_precision(load(NETS).module(1), load(NETS).inputs(1, 0), "f16")
    assert given.args[0].dtype == torch.float16 and not convolutional(module), "one convolution cuts patches"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    module, given = half_precision(net, Inputs((torch.randn(1, 3, 9, 9),)), "bf16")
    assert given.args[0].is_contiguous(memory_format=torch.channels_last)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, operator]
    assert next(iter(GPU_BUILDERS)) == "eager" and "max-autotune" not in gpu.GPU_SIDES
