"""Scaled dot-product attention.

TensorRT's layer takes it where it can, with the precision that its kernels have; elsewhere scores and softmax are float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, data_type, emitter
from torchsmith.backends.tensorrt.emitters._pieces import any_of, dtype_of, like, no, numbers_along, select, wide
from torchsmith.backends.tensorrt.emitters.matmul import product
from torchsmith.backends.tensorrt.emitters.quantize import by_layer
from torchsmith.backends.tensorrt.emitters.softmax import softmaxed
from torchsmith.backends.tensorrt.library import trt
from torchsmith.ir.dim import Shape, same
from torchsmith.ir.types import TensorType
from torchsmith.ops.attention import Attention

RANK = 4  # of what the layer takes


@emitter(Attention)
def attention(e: Emission, op: Attention, query: Any, key: Any, value: Any, mask: Any | None = None) -> Any:
    result = e.node.outputs[0].type
    scaled = _scaled(e, query, op.scale)
    if _layer_takes(e, op, mask):
        y = _by_layer(e, op, scaled, key, value, mask)
    else:
        y = _by_products(e, op, wide(e, scaled), wide(e, key), wide(e, value), mask)
    y = e.to(y, result.dtype)
    if mask is not None and _may_hide_a_row(e):
        takes_part = any_of(e, _takes_part(e, mask), [len(mask.shape) - 1], True)
        y = select(e, takes_part, y, like(e, 0, y))
    return y


def _layer_takes(e: Emission, op: Attention, mask: Any | None) -> bool:
    """The layer takes one batch, one known number of heads, values as long as keys, and a mask or a causal one."""
    if not hasattr(e.network, "add_attention") or (op.causal and mask is not None):
        return False
    query, key, value = (v.type for v in e.node.inputs[:3])
    one_batch = _same_batch(query, key) and _same_batch(query, value) and same(key.shape[-1], value.shape[-1])
    return one_batch and query.rank <= RANK and (query.rank < RANK or isinstance(query.shape[1], int))


def _same_batch(a: TensorType, b: TensorType) -> bool:
    return a.rank == b.rank and all(map(same, a.shape[:-2], b.shape[:-2]))


def _by_layer(e: Emission, op: Attention, query: Any, key: Any, value: Any, mask: Any | None) -> Any:
    one_head = e.node.inputs[0].type.rank == RANK - 1
    given = [_in_heads(e, x, v.type.shape, one_head) for x, v in zip((query, key, value), e.node.inputs)]
    softmax = trt().AttentionNormalizationOp.SOFTMAX
    if hasattr(e.network, "add_attention_v2"):
        kinds = trt().CausalMaskKind
        layer = e.network.add_attention_v2(*given, softmax, kinds.UPPER_LEFT if op.causal else kinds.NONE)
    else:
        layer = e.network.add_attention(*given, softmax, op.causal)
    if layer is not None:
        layer.decomposable = True  # into other layers, where no kernel takes its sizes
        if op.probabilities is not None:
            # in the queries' dtype, or TensorRT expects another result than it gives
            layer.normalization_quantize_scale = _of_probabilities(e, op, dtype_of(query))
            layer.normalization_quantize_to_type = data_type(op.probabilities)
        if mask is not None:
            layer.mask = _in_heads(e, mask, e.node.inputs[3].type.shape, one_head)
    result = e.node.outputs[0].type
    return e.shaped(e.layer(layer), result.shape) if result.rank < RANK else e.layer(layer)


def _in_heads(e: Emission, x: Any, shape: Shape, one_head: bool) -> Any:
    """x with the dimensions that the layer takes: batch, heads, length, features. The heads may be missing, or those before too."""
    return e.shaped(x, (shape[0], 1, *shape[1:])) if one_head and len(shape) == RANK - 1 else e.rank(x, RANK)


def _by_products(e: Emission, op: Attention, query: Any, key: Any, value: Any, mask: Any | None) -> Any:
    scores = product(e, query, key, transposed=True)
    masks = [] if mask is None else [mask]
    if op.causal:
        rows, columns = e.node.inputs[0].type.shape[-2], e.node.inputs[1].type.shape[-2]
        ahead = e.binary("GREATER", numbers_along(e, columns, 1, 2), numbers_along(e, rows, 0, 2))
        masks.append(no(e, ahead))
    for each in masks:
        if dtype_of(each) == torch.bool:
            scores = select(e, each, scores, like(e, -math.inf, scores))
        else:
            scores = e.binary("SUM", scores, wide(e, each))
    weights = softmaxed(e, scores, len(scores.shape) - 1)
    if op.probabilities is not None:
        step = _of_probabilities(e, op, torch.float32)
        weights = by_layer(e, by_layer(e, weights, step, None, op.probabilities), step, None, torch.float32)
    return product(e, weights, value)


def _of_probabilities(e: Emission, op: Attention, dtype: torch.dtype) -> Any:
    """The step that makes the greatest probability, 1, the greatest number of what they are rounded to."""
    assert op.probabilities is not None
    return e.number(1 / torch.finfo(op.probabilities).max, dtype)


def _scaled(e: Emission, query: Any, scale: float) -> Any:
    if scale == 1:
        return query
    dtype = dtype_of(query)
    if torch.tensor(scale, dtype=dtype).item() == torch.tensor(scale, dtype=torch.float32).item():
        return e.binary("PROD", query, like(e, scale, query))
    # rounding the scale itself would move every score the same way
    y = wide(e, query)
    return e.to(e.binary("PROD", y, like(e, scale, y)), dtype)


def _takes_part(e: Emission, mask: Any) -> Any:
    return mask if dtype_of(mask) == torch.bool else e.binary("GREATER", mask, like(e, -math.inf, mask))


def _may_hide_a_row(e: Emission) -> bool:
    """Whether nothing may take part in a row, which gives zeros; a mask that is not known may do so."""
    known = e.known(3)
    return known is None or bool((~(known if known.dtype == torch.bool else known > -math.inf).any(-1)).any())
