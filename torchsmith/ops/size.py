"""A size as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ir.dim import Dim
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType


@dataclass(frozen=True)
class Size(Op):
    """A size of the inputs' shapes as an int64 tensor of no dimensions. Source: a SymInt of torch.export used as a number."""

    size: Dim

    def infer(self) -> TensorType:
        return TensorType((), torch.int64)

    def reference(self) -> Tensor:
        # filled where it is: a number copied from the host could not be recorded in a CUDA graph
        return torch.full((), int(self.size), dtype=torch.int64)
