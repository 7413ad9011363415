"""Layer normalisation, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import at_least_two, filled, mask_of, wide
from torchsmith.ir.dim import Shape
from torchsmith.ops.layer_norm import LayerNorm


def normalized(
    e: Emission, x: Any, dims: Sequence[int], eps: float, parameters: Shape, weight: Any = None, bias: Any = None, groups: int = 1
) -> Any:
    """x over `dims`, times the weight, plus the bias. x: float32, two dimensions or more.

    parameters: the shape that weight and bias have (or would have), of x's rank. groups: of channels, each with its statistics.
    """
    weight = filled(e, 1, torch.float32, parameters) if weight is None else e.shaped(wide(e, weight), parameters)
    bias = filled(e, 0, torch.float32, parameters) if bias is None else e.shaped(wide(e, bias), parameters)
    add = getattr(e.network, "add_normalization_v2", None) or e.network.add_normalization
    layer = add(x, weight, bias, mask_of(dims))
    if layer is not None:
        layer.epsilon, layer.num_groups = eps, groups
    return e.layer(layer)


@emitter(LayerNorm)
def layer_norm(e: Emission, op: LayerNorm, x: Any, weight: Any | None = None, bias: Any | None = None) -> Any:
    given = e.node.inputs[0].type
    rows = at_least_two(e, wide(e, x))
    rank = len(rows.shape)
    parameters = (1,) * (rank - op.dims) + given.shape[-op.dims :]
    y = e.to(normalized(e, rows, range(rank - op.dims, rank), op.eps, parameters, weight, bias), given.dtype)
    return e.shaped(y, given.shape) if given.rank == 1 else y
