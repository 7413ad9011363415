"""Full float32 on the GPU, so that it can be compared with; what a test sets of cuDNN is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    before, searches = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32), torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.backends.cudnn.benchmark = searches
