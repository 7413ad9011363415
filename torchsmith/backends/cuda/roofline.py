"""What a step could take at best: its arithmetic and its bytes against what a GPU can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.backends.cuda.fuse.fused import Fused, flattened
from torchsmith.ir.dim import Dim, product, simplify
from torchsmith.ir.graph import Node

TERA = 1e12


@dataclass(frozen=True)
class Chip:
    """half, single: dense TFLOP/s of 16-bit products summed in float32, and of float32. memory: TB/s. Source: data sheets.

    Of eight bits all of these multiply at least twice as many as of 16.
    """

    half: float
    single: float
    memory: float

    def microseconds(self, flops: float, bytes: float, dtype: torch.dtype) -> float:
        """The least time for so much work: whichever of the two takes longer. dtype: of what is multiplied."""
        peak = self.single if dtype in (torch.float32, torch.float64) else self.half * (2 if dtype.itemsize == 1 else 1)
        return 1e6 * max(flops / (peak * TERA), bytes / (self.memory * TERA))


# By a part of the name that PyTorch gives a GPU; longer parts before those that they hold.
CHIPS: Mapping[str, Chip] = {
    "B200": Chip(2250, 75, 8.0),
    "GH200": Chip(989, 67, 4.0),
    "H200": Chip(989, 67, 4.8),
    "H100 NVL": Chip(835, 60, 3.9),
    "H100 PCIe": Chip(756, 51, 2.0),
    "H100": Chip(989, 67, 3.35),
    "A100-PCIE-40GB": Chip(312, 19.5, 1.555),
    "A100-SXM4-40GB": Chip(312, 19.5, 1.555),
    "A100": Chip(312, 19.5, 2.0),
    "A30": Chip(165, 10.3, 0.933),
    "A10": Chip(125, 31.2, 0.6),
    "L40S": Chip(362, 91.6, 0.864),
    "L40": Chip(181, 90.5, 0.864),
    "L4": Chip(121, 30.3, 0.3),
    "RTX 5090": Chip(209.5, 104.8, 1.792),
    "RTX 4090": Chip(165.2, 82.6, 1.008),
    "RTX 3090": Chip(71, 35.6, 0.936),
    "RTX A6000": Chip(154.8, 38.7, 0.768),
    "RTX 6000 Ada": Chip(364, 91.1, 0.96),
}


# Where an engine was built without a GPU at hand.
USUAL = {"sm_80": "A100", "sm_86": "A10", "sm_89": "L4", "sm_90": "H100", "sm_100": "B200", "sm_120": "RTX 5090"}


def chip_named(name: str) -> Chip | None:
    """What is known of a GPU, by its name; None of one that is not listed."""
    return next((chip for part, chip in CHIPS.items() if part.lower() in name.lower()), None)


def flops_of(node: Node) -> Dim:
    """Operations of a node's matrix products, a multiplication and an addition counted as two; what else it does is not counted."""
    total: Dim = 0
    for part in flattened([node]) if isinstance(node.op, Fused) else [node]:
        rule = _FLOPS.get(type(part.op).__name__)
        total = total + (rule(part) if rule else 0)
    return simplify(total)


def _convolution(node: Node) -> Dim:
    weight = node.inputs[1].type.shape
    return product((2, node.outputs[0].type.numel, *weight[1:]))


def _transposed(node: Node) -> Dim:
    weight = node.inputs[1].type.shape
    return product((2, node.inputs[0].type.numel, *weight[1:]))


def _product(node: Node) -> Dim:
    return product((2, node.outputs[0].type.numel, node.inputs[0].type.shape[-1]))


def _attention(node: Node) -> Dim:
    """Both products over all keys, masks and causality disregarded."""
    query, key, value = (v.type.shape for v in node.inputs[:3])
    rows = product(node.outputs[0].type.shape[:-1])
    return product((2, rows, key[-2], query[-1] + value[-1]))


_FLOPS: dict[str, Callable[[Node], Any]] = {
    "Convolution": _convolution,
    "ConvolutionTransposed": _transposed,
    "Linear": _product,
    "IntegerLinear": _product,
    "Float8Linear": _product,
    "IntegerConvolution": _convolution,
    "MatMul": _product,
    "Attention": _attention,
    "Float8Attention": _attention,
}
