"""The benchmark itself, on a GPU, with a model that builds at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.backends.cuda.on_gpu.nets import needs_gpu
from torchsmith.bench.gpu import GpuOptions, failures, run_on_gpu
from torchsmith.bench.overhead import compiled, gpu_call_overhead
from torchsmith.bench.station import Station, Task

pytestmark = needs_gpu

NET = f"{Path(__file__).parents[3] / 'bench' / 'nets.py'}:conv"


def test_sides_in_processes_of_their_own(tmp_path: Path) -> None:
    sides = ("eager", "torchscript", "cudagraph", "torchsmith")
    # so small a model has few roundings, of which ours may have one more; the batch makes their mean the same everywhere
    options = GpuOptions((NET,), (64,), sides, seconds=0.2, factor=1.5, compile={"tune": False, "min_block_size": 1})
    report = run_on_gpu(options, tmp_path, show=lambda text: None)
    assert {row.side: row.why for row in report.rows} == dict.fromkeys(sides, "") and failures(report) == []
    assert all(row.stats and row.stream and row.peak_mb is not None for row in report.rows)
    assert torch.cuda.get_device_name() in report.machine.gpu and list(tmp_path.glob("gpu-*.json"))


@pytest.mark.parametrize("side", ["eager", "cudagraph", "torchsmith"])
def test_times_of_the_device_and_of_the_caller(side: str) -> None:
    station = Station()
    found = station.build(Task(NET, 64, side, "f16", "cuda", {"tune": False, "min_block_size": 1}))
    assert found.why == "" and found.error is not None and found.error < 1e-2
    wall, stream = station.wall(20), station.stream(20)
    assert len(wall) == 20 and min(wall) > 0 and stream > 0
    station.close()


def test_what_a_call_costs_around_its_graph() -> None:
    x = torch.randn(4, 64, device="cuda")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval().cuda()
    fast = compiled(model, [x], enabled_precisions={torch.half}, min_block_size=1, tune=False)
    with torch.no_grad():
        kept = fast(x)
        before = kept.clone()
    found = gpu_call_overhead(fast, x, rounds=2, calls=20)
    assert min(found.graph_us, found.wait_us, found.gpu_us) > 0
    assert torch.equal(kept, before) and torch.equal(fast(x), before)  # replays wrote to no one's outputs
