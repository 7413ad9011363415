"""Networks that several tests quantize."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gated(nn.Module):
    """A depthwise convolution, the gate of what it gives, and a 1×1 convolution of what the gate scales."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.gate = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.project, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.last(self.project(y))  # type: ignore[no-any-return]
