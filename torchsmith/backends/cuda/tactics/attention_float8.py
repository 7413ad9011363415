"""Attention over queries, keys and values of float8, through `kernels/attention.py`.

Scores are products of float8. What follows the softmax has two ways. Hopper's warp-group products take float8 that lies along what
is summed over, and values lie along their features: Triton (3.8) moves them through registers, byte by byte, and exchanges
exponentials between threads, as their places in a product's result and in the next one's operand differ. So the better guess
is to make halves of the values, which tensor cores take either way, and of the exponentials, whose places then agree: that is
fewer instructions a key, of which softmax needs most, and rounds no probabilities. Blackwell takes float8 as it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.tactics.attention import AttentionConfig, emit_attention, problem_of, shapes_of

LEAST = 32  # floats of eight bits that tensor cores take at once of what is summed over
ROUNDED = 4  # configurations that round probabilities


@dataclass(frozen=True)
class AttentionFloat8Config:
    """As an `AttentionConfig`. rounded: exponentials are rounded to float8, to be multiplied with values as they are."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    rounded: bool = False


class AttentionFloat8Template:
    name = "attention_float8"
    kinds = frozenset({"attention_float8", "Float8Attention"})
    config_type = AttentionFloat8Config

    def configs(self, e: Emission) -> Sequence[AttentionFloat8Config]:
        p = problem_of(e)
        shapes = [
            AttentionFloat8Config(c.block_m, max(LEAST, c.block_n), c.num_warps, c.num_stages)
            for c in shapes_of(e, p, torch.float16)
        ]
        found = list(dict.fromkeys(shapes))
        if p.parts.main.op.probabilities is not None:  # type: ignore[attr-defined]
            rounded = [AttentionFloat8Config(c.block_m, c.block_n, c.num_warps, c.num_stages, True) for c in found[:ROUNDED]]
            found[2:2] = rounded
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: AttentionFloat8Config) -> None:
        c = config
        shape = AttentionConfig(c.block_m, c.block_n, c.num_warps, c.num_stages)
        emit_attention(e, problem_of(e), shape, "fast", not c.rounded, LEAST)


TEMPLATE = AttentionFloat8Template()
