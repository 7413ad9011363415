"""Scaled dot-product attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, current
from torchsmith.ir.dim import Dim, Shape, broadcast, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.expand import Expand
from torchsmith.ops.matmul import MatMul
from torchsmith.ops.permute import transpose
from torchsmith.ops.promote import cast, scalar
from torchsmith.ops.quantize import FP8, Dequantize
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.unary import Unary
from torchsmith.ops.where import Where

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention(Op):
    """softmax(scale * query @ key.T + mask) @ value, with scores and softmax in float32 at least.

    query: (..., L, E), key: (..., S, E), value: (..., S, V) of one floating dtype; what stands before broadcasts. mask:
    broadcasts to (..., L, S); bool (what is False takes no part) or of the query's dtype (added). A row in which nothing
    takes part gives zeros. causal: query i sees the keys up to i. Source: aten.scaled_dot_product_attention.

    probabilities: what the softmax's results are rounded to before they are multiplied with value; None where they are not.
    With float8_e4m3fn they are times 448, rounded to it with ties to even, and divided by 448 again, so that its whole range is
    used; what rows sum up to is not made 1 again. A kernel may round exponentials before it divides by their sum.
    """

    scale: float
    causal: bool
    probabilities: torch.dtype | None = None

    def infer(self, query: TensorType, key: TensorType, value: TensorType, mask: TensorType | None = None) -> TensorType:
        three = (query, key, value)
        if len({t.dtype for t in three}) > 1 or not query.dtype.is_floating_point or min(t.rank for t in three) < 2:
            raise Unsupported(f"attention of {query}, {key} and {value}; it takes (..., length, features) of one floating dtype")
        if not same(query.shape[-1], key.shape[-1]) or not same(key.shape[-2], value.shape[-2]):
            raise Unsupported(f"attention of {query}, {key} and {value}, whose sizes do not agree")
        if self.probabilities not in (None, FP8):
            raise Unsupported(f"attention with probabilities rounded to {self.probabilities}; engines round to float8_e4m3fn")
        batch = broadcast(*(t.shape[:-2] for t in three))
        scores = (*batch, query.shape[-2], key.shape[-2])
        if mask is not None and (mask.dtype not in (torch.bool, query.dtype) or not _fits(mask.shape, scores)):
            raise Unsupported(f"attention with scores of shape {scores} and a mask {mask}; it takes bool or {query.dtype}")
        return query.with_shape(*batch, query.shape[-2], value.shape[-1])

    def reference(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.probabilities is not None:
            return self._rounded(query, key, value, mask)
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, mask, is_causal=self.causal, scale=self.scale)

    def _rounded(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        assert self.probabilities is not None
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * self.scale
        if self.causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask.to(wide)
        probabilities = torch.softmax(scores, -1)
        probabilities = probabilities.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
        greatest = torch.finfo(self.probabilities).max
        probabilities = (probabilities * greatest).to(self.probabilities).to(wide) / greatest
        return (probabilities @ value.to(wide)).to(query.dtype)


def _fits(shape: Shape, wanted: Shape) -> bool:
    whole = broadcast(shape, wanted)
    return len(whole) == len(wanted) and all(map(same, whole, wanted))


@converter(aten.scaled_dot_product_attention.default)
def attention(
    query: Value, key: Value, value: Value, mask: Value | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    if dropout_p:
        raise Unsupported(f"attention with dropout_p={dropout_p}, which is random; give it 0.0 in eval mode")
    if enable_gqa:
        key, value = (_each_head(x, query.type.shape[-3]) for x in (key, value))
    op = Attention(_scale(query, scale), is_causal, FP8 if all(map(_is_fp8, (query, key, value))) else None)
    return op(query, key, value) if mask is None else op(query, key, value, mask)


def _is_fp8(x: Value) -> bool:
    """Whether x is dequantized from fp8, moved or not. Attention of nothing else rounds its probabilities to fp8 too.

    Graphs do not say so of a softmax inside a whole op; Torch-TensorRT's FP8 attention takes it as meant in the same way.
    """
    producers = {output: node for node in current().nodes for output in node.outputs}
    while x in producers and producers[x].op.moves_data and len(producers[x].inputs) == 1:
        x = producers[x].inputs[0]
    return x in producers and isinstance(producers[x].op, Dequantize) and producers[x].inputs[0].type.dtype == FP8


def _scale(query: Value, scale: float | None) -> float:
    size = query.type.shape[-1]
    if scale is None and not isinstance(size, int):
        raise Unsupported(f"attention of {query.type}; without a scale it takes a known number of features")
    return 1 / math.sqrt(max(int(size), 1)) if scale is None else scale


def _each_head(x: Value, heads: Dim) -> Value:
    """Keys or values with a head for each of the query's `heads`, where several share one."""
    *batch, own, length, features = x.type.shape
    if not isinstance(own, int) or not isinstance(heads, int):
        raise Unsupported(f"attention with enable_gqa of {own} and {heads} heads; both numbers must be known")
    if own == heads:
        return x
    shared = Expand((*batch, own, heads // own, length, features))(reshaped(x, (*batch, own, 1, length, features)))
    return reshaped(shared, (*batch, heads, length, features))


@converter(aten._scaled_dot_product_flash_attention_for_cpu.default)
def flash_attention(
    query: Value, key: Value, value: Value, dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Value | None = None, scale: float | None = None,
) -> tuple[Value, Value]:  # fmt: skip
    y = attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return y, _log_sum(query, key, attn_mask, is_causal, _scale(query, scale))


def _log_sum(query: Value, key: Value, mask: Value | None, causal: bool, scale: float) -> Value:
    """The logarithm of every row's sum of exponentials."""
    wide = current().expected[1].dtype
    scores = MatMul()(cast(query, wide), transpose(cast(key, wide), -1, -2))
    scores = Binary("mul")(scores, scalar(scale, wide))
    if causal:
        rows, columns = scores.type.shape[-2:]
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise Unsupported(
                f"the logarithm of causal attention's sums, for {rows} queries and {columns} keys; both must be known"
            )
        mask = constant(torch.ones(rows, columns, dtype=torch.bool).tril(), "causal")
    if mask is not None and mask.type.dtype == torch.bool:
        scores = Where()(mask, scores, scalar(-math.inf, wide))
    elif mask is not None:
        scores = Binary("add")(scores, cast(mask, wide))
    last = (scores.type.rank - 1,)
    greatest = Reduce("max", last, True)(scores)
    total = Reduce("sum", last, True)(Unary("exp")(Binary("sub")(scores, greatest)))
    return reshaped(Binary("add")(Unary("log")(total), greatest), scores.type.shape[:-1])
