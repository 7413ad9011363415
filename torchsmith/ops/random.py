"""Random numbers, which no engine draws."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.errors import Unsupported
from torchsmith.ops.registry import converter

aten = torch.ops.aten

NAMES = (
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm",
    "bernoulli", "multinomial", "normal", "poisson", "native_dropout",
)  # fmt: skip


def _register(name: str) -> None:
    packet = getattr(aten, name)
    drawing = [overload for overload in packet.overloads() if not overload.endswith("out")]

    @converter(*(getattr(packet, overload) for overload in drawing))
    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported(f"{name} draws random numbers, which stay in PyTorch so that its seed rules them")


for _name in NAMES:
    _register(_name)
