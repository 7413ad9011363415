"""TF32: whether the operands of float32 products may lose bits on their way into tensor cores.

A build reads PyTorch's own switches once, and what it read goes with every step, so that an engine computes the same wherever it
runs: `torch.backends.cuda.matmul.fp32_precision` for products, `torch.backends.cudnn.conv.fp32_precision` for convolutions,
`torch.backends.cudnn.rnn.fp32_precision` for recurrent layers. The older `allow_tf32` and `torch.set_float32_matmul_precision`
set these too, while reading those raises once both kinds were used. By default PyTorch allows it in convolutions and recurrent
layers. Source: PyTorch's notes on CUDA semantics, "TensorFloat-32 (TF32) on Ampere (and later) devices".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from torchsmith.ir.graph import Node
from torchsmith.ir.op import Op

_cudnn: Any = torch.backends.cudnn  # whose parts the type checker does not see
_SWITCHES: dict[str, Any] = {"matmul": torch.backends.cuda.matmul, "conv": _cudnn.conv, "rnn": _cudnn.rnn}
# Which switch an op looks at, by its class.
_FOLLOWS = {
    **dict.fromkeys(("Linear", "LibraryLinear", "MatMul", "Attention"), "matmul"),
    **dict.fromkeys(("Convolution", "LibraryConvolution"), "conv"),
    "Recurrent": "rnn",
}
_switching = threading.RLock()  # the switches are the process's


@dataclass(frozen=True)
class Tf32:
    """Where float32 operands may be rounded to TF32 (10 bits after the leading one): products, convolutions, recurrent layers."""

    matmul: bool = False
    conv: bool = False
    rnn: bool = False

    @staticmethod
    def allowed() -> Tf32:
        """As PyTorch's switches say now; nowhere with NVIDIA_TF32_OVERRIDE=0 in the environment, which NVIDIA's libraries obey."""
        if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
            return Tf32()
        return Tf32(**{name: switch.fp32_precision == "tf32" for name, switch in _SWITCHES.items()})

    def of(self, op: Op, dtype: torch.dtype) -> bool | None:
        """Whether an op may round operands of that dtype. None where it is no question: no float32, or nothing is multiplied."""
        follows = _FOLLOWS.get(type(op).__name__)
        return None if follows is None or dtype != torch.float32 else bool(getattr(self, follows))

    def of_node(self, node: Node) -> bool | None:
        return self.of(node.op, node.inputs[0].type.dtype) if node.inputs else None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """PyTorch's switches as they are here, for as long as the block runs."""
        with ExitStack() as stack:
            for field in fields(self):
                stack.enter_context(_switched(field.name, getattr(self, field.name)))
            yield


def decides(op: Op) -> bool:
    """Whether there is a switch that the op looks at."""
    return type(op).__name__ in _FOLLOWS


@contextmanager
def running(op: Op, tf32: bool | None) -> Iterator[None]:
    """PyTorch's switch for the op, for as long as the block runs. tf32: None leaves it as it is."""
    if tf32 is None:
        yield
        return
    with _switched(_FOLLOWS[type(op).__name__], tf32):
        yield


@contextmanager
def _switched(name: str, on: bool) -> Iterator[None]:
    """It is set for the whole process, and only where it is not so already; one thread at a time."""
    switch = _SWITCHES[name]
    with _switching:
        before = switch.fp32_precision
        if (before == "tf32") == on:
            yield
            return
        switch.fp32_precision = "tf32" if on else "ieee"
        try:
            yield
        finally:
            switch.fp32_precision = "none"  # which takes what torch.backends.fp32_precision says
            if switch.fp32_precision != before:
                switch.fp32_precision = before
