"""An engine's steps as rows: operations, bytes, the roofline, symbolic sizes; no GPU needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.simulated import SM_90, graph_of
from torchsmith.backends.cuda.build import build_engine
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.inspect import Profile, profile, together
from torchsmith.backends.cuda.roofline import CHIPS, Chip, chip_named, flops_of
from torchsmith.config import BuildConfig
from torchsmith.errors import InvalidOption
from torchsmith.ir.dim import bind


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.conv(x).relu())
        y = F.scaled_dot_product_attention(y, y, y)
        return y @ y.transpose(-1, -2)


@pytest.fixture(scope="module")
def dynamic() -> bytes:
    x = torchsmith.Input(min_shape=(1, 64), opt_shape=(8, 64), max_shape=(512, 64))
    return build_engine(graph_of(Net(), [x]), SM_90, BuildConfig())


def symbol(found: Profile) -> int:
    (size,) = found.at.values()
    return size


def test_operations_are_those_of_the_products() -> None:
    graph = graph_of(Mixed(), [torch.randn(2, 8, 6, 4)])
    expected = {
        "Convolution": 2 * (2 * 16 * 6 * 4) * 4 * 9,
        "ConvolutionTransposed": 2 * (2 * 16 * 6 * 4) * 4 * 2 * 2,
        "Attention": 2 * (2 * 4) * 12 * 12 * (8 + 8),
        "MatMul": 2 * (2 * 4 * 12 * 12) * 8,
    }
    found = {type(n.op).__name__: flops_of(n) for n in graph.nodes}
    assert {name: found[name] for name in expected} == expected and found["Unary"] == 0
    assert sum(map(int, map(flops_of, fuse(graph).nodes))) == sum(expected.values()), "fusion changes none of it"


def test_rows_at_a_size(dynamic: bytes) -> None:
    from torchsmith.backends.cuda.inspect import symbols_of
    from torchsmith.backends.cuda.plan import read

    (name,) = symbols_of(read(dynamic)[0])
    at_8, at_80 = (profile(dynamic, {name: size}) for size in (8, 80))
    assert symbol(at_8) == 8 and at_8.chip == "H100"
    products = [row for row in at_80.rows if row.flops]
    assert [row.flops for row in products] == [2 * 80 * 64 * 128, 2 * 80 * 128 * 32]
    assert sum(r.flops for r in at_80.rows) == 10 * sum(r.flops for r in at_8.rows)
    last = products[-1]
    assert (
        last.output.endswith("[80, 32]") and last.bytes >= 2 * (80 * 128 + 32 * 128) and last.grid and "aten.linear" in last.origin
    )
    assert last.least_us == pytest.approx(1e6 * last.bytes / 3.35e12) and last.microseconds is None and last.share is None
    assert last.to_json()["grid"] == list(last.grid)


def test_a_size_that_is_not_said(dynamic: bytes) -> None:
    with pytest.raises(InvalidOption, match=r"has a dynamic size 's\d+'; say which, as in --at s\d+=8"):
        profile(dynamic, {})


def test_what_was_tuned_together_is_compared_together(dynamic: bytes) -> None:
    row = profile(build_engine(graph_of(Net(), [torch.randn(8, 64)]), SM_90, BuildConfig()), {}).rows[0]
    first = dataclasses.replace(row, tactic="split", microseconds=4.0, timed="tuned", least_us=1.0)
    rest = dataclasses.replace(row, tactic="", microseconds=None, least_us=1.0)
    assert [r.least_us for r in together([first, rest, first])] == [2.0, 1.0, 1.0]
    assert together([first, rest])[0].share == pytest.approx(0.5)


def test_the_longer_name_wins() -> None:
    assert chip_named("NVIDIA H100 PCIe") is CHIPS["H100 PCIe"] and chip_named("NVIDIA H100 80GB HBM3") is CHIPS["H100"]
    assert chip_named("NVIDIA L40S") is CHIPS["L40S"] and chip_named("NVIDIA L4") is CHIPS["L4"]
    assert chip_named("GeForce GTX 970") is None
    names = list(CHIPS)
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b], "a part stands before the whole"


def test_the_slower_of_the_two_decides() -> None:
    chip = Chip(half=100, single=10, memory=1)
    assert chip.microseconds(1e8, 1e3, torch.float16) == pytest.approx(1.0)
    assert chip.microseconds(1e8, 1e3, torch.float32) == pytest.approx(10.0)
    assert chip.microseconds(1e3, 1e6, torch.float16) == pytest.approx(1.0)


def test_binding_the_operations_of_a_dynamic_graph() -> None:
    x = torchsmith.Input(min_shape=(1, 64), opt_shape=(8, 64), max_shape=(512, 64))
    graph = graph_of(Net(), [x])
    (name,) = graph.ranges
    assert [bind(flops_of(n), {name: 3}) for n in graph.nodes if flops_of(n) != 0] == [2 * 3 * 64 * 128, 2 * 3 * 128 * 32]
