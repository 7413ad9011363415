"""torchsmith itself, measured: a small model down the whole road."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import torchsmith
from torchsmith.bench import overhead, run_bench
from torchsmith.bench.overhead import call_overhead
from torchsmith.errors import InvalidInput

NETS = Path(__file__).parent / "nets.py"


def test_torchsmith_takes_its_place_among_the_peers() -> None:
    report = run_bench(f"{NETS}:conv", [1, 2], ["f32", "bf16"], ["openvino"], seconds=0.2, memory=False, progress=False)
    ours = [row for row in report.rows if row.side == "torchsmith"]
    assert [(row.batch, row.precision) for row in ours] == [(1, "f32"), (1, "bf16"), (2, "f32"), (2, "bf16")]
    assert all(row.stats and report.speedup(row) and report.speedup(row, over="openvino") for row in ours)
    assert all(row.error is not None and row.error < (1e-6 if row.precision == "f32" else 0.05) for row in ours)


def test_keyword_inputs_and_dictionaries_are_compared_too() -> None:
    report = run_bench(f"{NETS}:pair", precisions=["f32"], peers=["eager"], seconds=0.1, memory=True, progress=False)
    assert report.rows[-1].side == "torchsmith" and report.rows[-1].stats
    assert all(row.peak_mb and row.peak_mb > 50 for row in report.rows)


def test_the_call_around_an_engine_is_measured() -> None:
    x = torch.randn(1, 16)
    fast = torchsmith.compile(nn.Sequential(nn.Linear(16, 16), nn.ReLU()).eval(), inputs=[x], min_block_size=1)
    found = call_overhead(fast, x, seconds=0.5)
    assert found.whole_us > 0 and found.engine_us > 0


def test_the_overhead_of_a_hybrid_is_refused() -> None:
    x = torch.randn(1, 16)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    fast = torchsmith.compile(net.eval(), inputs=[x], min_block_size=1, torch_executed_ops={"aten.relu"})
    with pytest.raises(InvalidInput, match="a module of one engine and nothing else"):
        call_overhead(fast, x)


def test_the_command_says_what_a_call_costs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "call_overhead", partial(call_overhead, seconds=0.2))
    assert overhead.main([]) == 0 and capsys.readouterr().out.count("µs around an engine of") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_command_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert overhead.main(["--device", "cuda"]) == 2 and "PyTorch finds no GPU here" in capsys.readouterr().err
