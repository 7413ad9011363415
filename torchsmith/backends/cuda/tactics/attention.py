"""Attention through `kernels/attention.py`: queries, keys and values where they are, whatever their strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.attention import attention
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.backends.cuda.tactics.rows import blocks_of, check_floats, check_offsets, up
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, product, same
from torchsmith.ir.graph import Value
from torchsmith.ir.types import TensorType

WIDEST_HEAD = 256
PROCESSORS = 132
USUAL_SIZE = 64  # what guesses take an unknown number of heads, queries or keys for


@dataclass(frozen=True)
class AttentionConfig:
    """Queries of a block, and keys at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Problem:
    """batch: sizes of the dimensions before (length, features) in the result; they count heads."""

    parts: Parts
    batch: tuple[Dim, ...]
    length: Dim
    keys: Dim
    features: int
    values: int

    @property
    def heads(self) -> Dim:
        return product(self.batch)


class AttentionTemplate:
    name = "attention"
    kinds = frozenset({"attention", "Attention"})
    config_type = AttentionConfig

    def configs(self, e: Emission) -> Sequence[AttentionConfig]:
        p = problem_of(e)
        check_floats(p.parts.main.inputs[:1])
        if p.parts.main.op.probabilities is not None:  # type: ignore[attr-defined]
            raise Unsupported("probabilities are rounded where queries, keys and values are float8 too")
        found = shapes_of(e, p, p.parts.main.inputs[0].type.dtype)
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: AttentionConfig) -> None:
        p = problem_of(e)
        # where it may round, PyTorch's kernel makes three products of TF32, which is all but float32; so does this one
        emit_attention(e, p, config, "tf32x3" if e.precision(p.parts.main) == "tf32" else "ieee")


def emit_attention(e: Emission, p: Problem, config: AttentionConfig, precision: str, widen: bool = False, least: int = 16) -> None:
    """Add the kernel. widen: make halves of the values. least: elements that tensor cores take at once of what is summed over."""
    main, (output,) = p.parts.main, p.parts.outputs
    q, k, v, *rest = main.inputs
    mask = rest[0] if rest else None
    writer = HookWriter(e.views, e.constant)
    strides = {name: e.view(value).strides for name, value in (("q", q), ("k", k), ("v", v))}
    mask_row, mask_col = _mask_strides(e, mask, p) if mask else (0, 0)
    even = isinstance(p.keys, int) and p.keys % config.block_n == 0
    e.launch(
        attention,
        (blocks_of(p.length, config.block_m) * p.heads,),
        {
            **dict(q=q, k=k, v=v, mask=mask, y=output, L=p.length, S=p.keys, mask_row=mask_row, mask_col=mask_col),
            **{f"{name}_row": s[-2] for name, s in strides.items()},
            **{f"{name}_col": s[-1] for name, s in strides.items()},
            **dict(OFFSETS=_offsets(e, p, writer, (q, k, v, mask)), **_results(e, p, writer)),
            **dict(SCALE=float(main.op.scale) * math.log2(math.e), CAUSAL=bool(main.op.causal)),  # type: ignore[attr-defined]
            **dict(MASK="" if mask is None else "bool" if mask.type.dtype == torch.bool else "add", EVEN=even),
            **dict(TAIL=0 if main.op.causal else tail_of(p.keys, config.block_n, least)),  # type: ignore[attr-defined]
            **dict(E=p.features, V=p.values, BLOCK_E=max(least, up(p.features)), BLOCK_V=max(16, up(p.values))),
            **dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, PRECISION=precision, WIDEN=widen, PDL=True),
            **writer.arguments(),
        },
        writes=[output],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def problem_of(e: Emission) -> Problem:
    """Raises Unsupported for heads wider than 256, unknown numbers of features, and what does not fit 32-bit offsets."""
    parts = parts_of(e.node, "Attention", "Float8Attention")
    main = parts.main
    if len(parts.outputs) > 1 or parts.before:
        raise Unsupported("attention with more than one output, or with what comes before it")
    q, k, v = main.inputs[:3]
    check_offsets([*main.inputs, *parts.outputs])
    features, values = q.type.shape[-1], v.type.shape[-1]
    if not isinstance(features, int) or not isinstance(values, int) or max(features, values) > WIDEST_HEAD:
        raise Unsupported(f"attention with heads of {features} and {values} features; it takes known numbers up to {WIDEST_HEAD}")
    shape = main.outputs[0].type.shape
    return Problem(parts, shape[:-2], shape[-2], k.type.shape[-2], features, values)


def tail_of(keys: Dim, block_n: int, least: int = 16) -> int:
    """The smallest block that takes the keys left over by whole ones; 0 where that is none, or as large as they are."""
    left = keys % block_n if isinstance(keys, int) else 0
    tail = max(least, up(left)) if left else 0
    return tail if tail < block_n else 0


def shapes_of(e: Emission, p: Problem, dtype: torch.dtype) -> list[AttentionConfig]:
    """Small tiles where there are few heads and queries, large ones, for wgmma, where there are enough blocks."""
    wide = max(p.features, p.values) > 128
    if dtype == torch.float32:
        sizes = [(16, 32, 4, 2), (32, 32, 4, 2)] if wide else [(32, 32, 4, 2), (64, 32, 4, 2), (16, 32, 2, 2), (64, 64, 8, 2)]
    elif wide:
        sizes = [(64, 32, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2), (32, 32, 4, 2), (16, 32, 2, 2)]
    else:
        # fewer stages than steps leave the loop a loop, in fewer registers, where the keys are few
        sizes = [(128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (128, 128, 8, 2),
                 (64, 128, 4, 2), (64, 32, 4, 3), (32, 64, 4, 3), (16, 64, 2, 3), (16, 128, 4, 2)]  # fmt: skip
    heads, length, keys = (e.likely(n, USUAL_SIZE) for n in (p.heads, p.length, p.keys))
    if isinstance(p.keys, int) and p.keys <= 256 and not wide and dtype != torch.float32:
        sizes += [(16, max(16, up(p.keys)), 8, 2), (32, max(16, up(p.keys)), 8, 2)]  # all keys at once
    sizes = list(dict.fromkeys(sizes))
    found = [AttentionConfig(*size) for size in sizes if size[0] <= max(sizes[-1][0], up(length))]
    return sorted(found, key=lambda c: _cost(heads, length, keys, c))


def _cost(heads: int, length: int, keys: int, c: AttentionConfig) -> float:
    """About the time of the busiest processor: steps over the keys, each with a fixed part and one that grows with the tile."""
    blocks = heads * -(-length // c.block_m)
    step = 1.0 + c.block_m * c.block_n / 4096
    together = max(1, 8 // c.num_warps)  # blocks that share a processor slow each other down by less than their number
    waves = -(-blocks // PROCESSORS)
    trips = -(-keys // c.block_n)
    # without a loop to pipeline, keys and values pass through registers, a few at a time
    trips = max(trips, 2)
    return trips * step * (waves if waves > together else 1 + (waves - 1) * 0.5)


def _offsets(e: Emission, p: Problem, writer: HookWriter, operands: Sequence[Value | None]) -> Hook:
    """(batch) to where each operand's matrix begins."""
    found = ["0" if v is None else _batch_offset(e, p, writer, v) for v in operands]
    return writer.hook("offsets", ("batch",), found)


def _batch_offset(e: Emission, p: Problem, writer: HookWriter, value: Value) -> str:
    shape, strides = value.type.shape[:-2], e.view(value).strides[:-2]
    if not p.batch:
        return "0"
    leading = Value("leading", TensorType(shape, value.type.dtype))  # its dimensions alone
    own = HookWriter({leading: View(leading, strides)}, e.constant, writer.operands, writer.sizes)
    return own.offset(leading, Space(p.batch, (("batch", tuple(range(len(p.batch)))),)))


def _results(e: Emission, p: Problem, writer: HookWriter) -> dict[str, Hook]:
    """The epilogue, and where the output's elements are."""
    main, (output,) = p.parts.main.outputs[0], p.parts.outputs
    rank = len(p.batch)
    indices = (("batch", tuple(range(rank))), ("rows", (rank,)), ("cols", (rank + 1,)))
    masks = (("batch", ""), ("rows", "row_mask"), ("cols", "col_mask"))
    space = Space(main.type.shape, indices if rank else indices[1:], masks)
    after = HookWriter(e.views, e.constant, writer.operands, writer.sizes)
    after.names[main] = "acc"
    after.compute(p.parts.after, space)
    parameters = ("batch", "rows", "cols")
    epilogue = after.hook("epilogue", ("acc", *parameters, "row_mask", "col_mask", "mask"), [after.names[output]])
    place = HookWriter(e.views, e.constant, writer.operands, writer.sizes)
    return {"EPILOGUE": epilogue, "PLACE": place.hook("place", parameters, [place.offset(output, space)])}


def _mask_strides(e: Emission, mask: Value, p: Problem) -> tuple[Dim, Dim]:
    """Of its last two dimensions; a missing dimension, or one of size 1, is the same for all."""
    rank = mask.type.rank
    strides, shape = (0, 0, *e.view(mask).strides), (1, 1, *mask.type.shape)
    row, col = (0 if same(shape[d], 1) else strides[d] for d in (rank, rank + 1))
    return row, col


TEMPLATE = AttentionTemplate()
