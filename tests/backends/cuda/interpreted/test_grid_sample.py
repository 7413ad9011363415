"""Samples at a grid: no kernel is ours, so that they run as PyTorch's inside the engine, between kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.ops.grid_sample import MODES, PADDINGS


class Warp(nn.Module):
    """A picture's features, channels-last as convolutions give them, sampled where a flow made of them points."""

    def __init__(self, mode: str, padding: str, corners: bool) -> None:
        super().__init__()
        self.how = mode, padding, corners
        self.features, self.flow, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        y = torch.relu(self.features(x))
        found = F.grid_sample(y, grid + 0.1 * torch.tanh(self.flow(y)).permute(0, 2, 3, 1), *self.how)
        return torch.relu(self.last(found)) + found


GRID = torch.rand(2, 9, 7, 2, generator=torch.Generator().manual_seed(3)) * 3 - 1.5


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_samples_of_channels_last_features(mode: str, padding: str) -> None:
    x = torch.randn(2, 4, 9, 7).contiguous(memory_format=torch.channels_last)
    # nearest ones jump where half a bit moves a place over a pixel's edge
    for dtype in (torch.float32,) if mode == "nearest" else (torch.float16, torch.bfloat16, torch.float32):
        found = check(Warp(mode, padding, mode == "bicubic"), x, GRID, dtype=dtype)
        assert found.kernels.count("[GridSample]") == 1, found.kernels
        assert [v.type.dtype for s in found.steps if "GridSample" in str(s) for v in s.inputs] == [torch.float32] * 2
        assert not [name for name in found.kernels if name.startswith("[") and name != "[GridSample]"], found.kernels


def test_samples_of_volumes() -> None:
    class Volume(nn.Module):
        def forward(self, x: Tensor, grid: Tensor) -> Tensor:
            return F.grid_sample(x * 2.0, grid.clamp(-0.9, 0.9), align_corners=True) + 1.0

    found = check(Volume(), torch.randn(1, 3, 4, 5, 6), torch.rand(1, 2, 3, 4, 3) * 2 - 1)
    assert "[GridSample]" in found.kernels, found.kernels


def test_sizes_known_at_run_time() -> None:
    batch, height, width = (torch.export.Dim(name, min=least, max=64) for name, least in (("n", 1), ("h", 4), ("w", 4)))
    net = Warp("bilinear", "zeros", False)
    graph = graph_of(net, [Input((batch, 4, height, width)), Input((batch, height, width, 2))])
    for n, h, w in ((1, 7, 6), (3, 4, 9)):
        found = run(graph, [torch.randn(n, 4, h, w), torch.rand(n, h, w, 2) * 3 - 1.5])
        assert found.error <= 1.1 * found.eager_error + 2e-4 and found.kernels.count("[GridSample]") == 1, found.kernels
