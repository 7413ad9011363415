"""First convolutions through the template that loads tap by tap, every family of configurations, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.interpreted.test_convolution import First, only
from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith.backends.cuda.kernels.stem_taps import twin
from torchsmith.backends.cuda.tactics import stem_taps
from torchsmith.backends.cuda.tactics.stem_taps import StemTapsConfig, weights_in_order
from torchsmith.errors import Unsupported


@pytest.fixture(autouse=True)
def small_problems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem_taps, "MANY_PIXELS", 0)


def taps_only(monkeypatch: pytest.MonkeyPatch, *config: Any) -> None:
    only(monkeypatch, stem_taps.TEMPLATE, StemTapsConfig(*config))


@pytest.mark.parametrize(("wide", "dtype"), [(1, torch.float16), (2, torch.float16), (4, torch.float16), (4, torch.bfloat16)])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (First(3, 18, 3, stride=2, padding=1), (2, 3, 9, 12)),
        (First(3, 8, 7, scale=0.3, stride=2, padding=3), (1, 3, 8, 10)),
        (First(2, 40, (2, 4), stride=(1, 4), padding=(1, 0), dilation=(2, 1)), (3, 2, 6, 12)),
        (First(1, 5, 5, stride=2, padding=(0, 2)), (1, 1, 12, 14)),
    ],
)
def test_shapes(module: First, shape: tuple[int, ...], wide: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    taps_only(monkeypatch, 32, 16, 16, wide, 2)
    assert "stem_taps" in check(module, torch.randn(shape), dtype=dtype).kernels


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("filters", [16, 64, 128])
def test_configurations(filters: int, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = First(3, filters - 3, 3, stride=2, padding=1), torch.randn(1, 3, 18, 30)
    for config in stem_taps._guesses(filters, 4, few):
        taps_only(monkeypatch, *vars(config).values())
        assert "stem_taps" in check(module, x).kernels


@pytest.mark.parametrize("width", [11, 12])
def test_odd_pictures_are_loaded_element_by_element(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    given = type(stem_taps.TEMPLATE).configs

    def configs(self: Any, e: Any) -> Any:
        offered = given(self, e)
        found.extend(c.wide for c in offered)
        return offered[:1]

    only(monkeypatch, stem_taps.TEMPLATE, None)
    monkeypatch.setattr(type(stem_taps.TEMPLATE), "configs", configs)
    assert "stem_taps" in check(First(3, 8, 7, stride=2, padding=3), torch.randn(1, 3, 9, width)).kernels
    assert set(found) == ({1} if width % 2 else {1, 4})


def test_dynamic_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    taps_only(monkeypatch, 32, 16, 32, 1, 2, 2)
    sizes = torchsmith.Input(min_shape=(1, 3, 4, 6), opt_shape=(2, 3, 8, 8), max_shape=(4, 3, 12, 12))
    graph = graph_of(First(3, 8, 3, stride=2, padding=1), [sizes])
    for shape in ((1, 3, 4, 7), (3, 3, 11, 12)):
        found = run(graph, [torch.randn(shape)])
        assert "stem_taps" in found.kernels
        assert found.error <= 1.1 * found.eager_error + 2e-4


def test_dynamic_batch_loads_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    taps_only(monkeypatch, 32, 16, 16, 4, 2)
    sizes = torchsmith.Input(min_shape=(1, 3, 8, 12), opt_shape=(2, 3, 8, 12), max_shape=(4, 3, 8, 12))
    found = run(graph_of(First(3, 8, 3, stride=2, padding=1), [sizes]), [torch.randn(3, 3, 8, 12)])
    assert "stem_taps" in found.kernels
    assert found.error <= 1.1 * found.eager_error + 2e-4


def test_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv((x.float() - 120.0) / 60.0)
            return y

    taps_only(monkeypatch, 32, 16, 16, 4, 2)
    assert "stem_taps" in check(Picture(), torch.randint(0, 255, (1, 3, 6, 8), dtype=torch.uint8)).kernels


def test_order_of_weights() -> None:
    weight = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    # rows of four columns, the first of them before the window; all first columns of a block, then all second
    assert weights_in_order(weight, 2, 1, 4, 8).tolist() == [[0, 2, 1, 3, 0, 5, 4, 6]]
    assert weights_in_order(weight, 4, 1, 8, 8).tolist() == [[0, 0, 1, 4, 2, 5, 3, 6]]
    assert weights_in_order(weight, 1, 0, 4, 8).tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]


def test_twin() -> None:
    x, w = torch.randn(2, 3, 6, 8), torch.randn(4, 3, 3, 3)
    found = twin(x, w, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, torch.relu, torch.float32)
    torch.testing.assert_close(found, F.conv2d(x, w, stride=2, padding=1).relu())


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    given = type(stem_taps.TEMPLATE).configs

    def configs(self: Any, e: Any) -> Any:
        try:
            return given(self, e)
        except Unsupported as why:
            seen.append(str(why))
            raise

    monkeypatch.setattr(type(stem_taps.TEMPLATE), "configs", configs)
    monkeypatch.setattr(stem_taps, "MANY_PIXELS", 1000)
    check(First(3, 8, 3), torch.randn(1, 3, 5, 6))
    check(First(3, 8, 3), torch.randn(1, 3, 5, 6), dtype=torch.float32)
    check(First(4, 8, 3, groups=2), torch.randn(1, 4, 5, 6))
    check(First(3, 8, 10), torch.randn(1, 3, 11, 10))
    words = [next(word for word in ("pixels", "float32", "groups", "channels and taps") if word in s) for s in seen]
    assert list(dict.fromkeys(words)) == ["pixels", "float32", "groups", "channels and taps"]
