"""Reshapes that copy, padding, repetition and resizing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "heads": (lambda x: x.transpose(1, 2).reshape(2, 5, 24), (2, 3, 5, 8)),
    "flatten a permutation": (lambda x: x.permute(0, 3, 1, 2).flatten(1), (2, 9, 7, 20)),
    "shuffle channels": (lambda x: F.channel_shuffle(x, 4), (2, 16, 5, 5)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), (1, 12, 5, 6)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=-1.5), (2, 3, 5, 8)),
    "pad with a tensor's own": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), (2, 3, 5, 8)),
    "pad with the edge": (lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), (2, 3, 5, 8)),
    "pad around": (lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"), (2, 3, 5, 8)),
    "repeat": (lambda x: x.repeat(2, 1, 3, 1), (2, 3, 5, 8)),
    "roll": (lambda x: torch.roll(x, (2, 1), (1, 2)), (2, 5, 7)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (1, 3, 5, 8)),
    "nearest to a size": (lambda x: F.interpolate(x, (7, 3)), (1, 3, 5, 8)),
    "nearest exact": (lambda x: F.interpolate(x, (7, 13), mode="nearest-exact"), (1, 3, 5, 8)),
    "bilinear": (lambda x: F.interpolate(x, (7, 13), mode="bilinear"), (1, 3, 5, 8)),
    "bilinear by a factor": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), (1, 3, 5, 8)),
    "bilinear with corners": (lambda x: F.interpolate(x, (7, 13), mode="bilinear", align_corners=True), (1, 3, 5, 8)),
    "linear": (lambda x: F.interpolate(x, 13, mode="linear"), (1, 3, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_moves(case: str) -> None:
    function, shape = CASES[case]
    for dtype in (torch.float16, torch.float32):
        found = check(Apply(lambda x: function(x) * 2.0), torch.randn(shape), dtype=dtype)
        assert set(found.kernels) <= {"pointwise", "tiled"}, found.kernels


def test_read_and_compute_are_one_kernel() -> None:
    assert check(Apply(lambda x: F.relu(F.pad(x, (1, 1)) + 1.0)), torch.randn(3, 6)).kernels == ["pointwise"]


class Dynamic(nn.Module):
    """Pooling, concatenation, resizing and a reshape that copies, of pictures of any number and size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.first(x), self.second(x)], 1)
        y = F.max_pool2d(y, 3, 2, 1) * 0.5
        return F.relu(F.pad(y, (1, 1, 0, 1))).permute(0, 3, 1, 2).flatten(2)


def test_sizes_known_at_run_time() -> None:
    batch, height = torch.export.Dim("n", max=8), torch.export.Dim("h", min=2, max=64)
    graph = graph_of(Dynamic(), [Input((batch, 8, height, 6))])
    for shape in ((1, 8, 7, 6), (3, 8, 4, 6)):
        found = run(graph, [torch.randn(shape)])
        assert found.error <= 1.1 * found.eager_error + 2e-4 and "[" not in "".join(found.kernels), found.kernels
