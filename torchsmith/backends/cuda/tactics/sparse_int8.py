"""Linear layers and 1×1 convolutions of int8 with 2:4 weights on sparse tensor cores.

cuSPARSELt multiplies the sums by a scale a feature, adds a bias and rounds to 16 bits, where that is how the node goes on; else it
gives the sums in int32. What follows is one pointwise launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.sparse import CUSPARSELT, HALVES, SparseIntegerLinear
from torchsmith.backends.cuda.tactics.after import emit_after, plan_after, renamed
from torchsmith.backends.cuda.tactics.cublas import features_innermost
from torchsmith.backends.cuda.tactics.parts import Parts
from torchsmith.backends.cuda.tactics.sparse import INTEGER_MAINS, fused_after, libraries, matrix_size, product_of, weights
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Node, Value


@dataclass(frozen=True)
class SparseInt8Config:
    """scaled: whether the library's kernel multiplies by the scales; fused: whether relu, which follows that, is in it too.

    library, algorithm: see `SparseIntegerLinear`.
    """

    library: str
    scaled: bool
    algorithm: int = 0
    fused: bool = False


@dataclass(frozen=True)
class Scaled:
    """What the library's kernel does to the sums. scale, bias: (N,) float32. value: its result; after: the nodes that are left.

    The library takes the bias in the result's dtype: what rounding it costs is judged when the tactic is tried.
    """

    scale: Tensor
    bias: Tensor
    value: Value
    after: tuple[Node, ...]


class SparseInt8Template:
    name = "sparse_int8"
    kinds = frozenset({"gemm_int8", "convolution_int8", *INTEGER_MAINS})
    config_type = SparseInt8Config

    def configs(self, e: Emission) -> Sequence[SparseInt8Config]:
        parts = product_of(e, *INTEGER_MAINS)
        given = libraries(e, parts, 1)
        scales = scaled_by(e, parts)
        can = [fused for fused in (True, False) if scales and (not fused or relu_after(scales))]
        found = [SparseInt8Config(c.library, True, c.algorithm, fused) for fused in can for c in given if c.library == CUSPARSELT]
        found += [SparseInt8Config(c.library, False, c.algorithm) for c in given]
        fitting = [c for c in found if self._refusal(e, c) is None]
        if not fitting:
            raise Unsupported(str(self._refusal(e, found[0])))
        return fitting

    def _refusal(self, e: Emission, config: SparseInt8Config) -> Unsupported | None:
        """Why what follows the product cannot be written."""
        try:
            self.emit(Emission(e.node, e.views, e._packed), config)
        except Unsupported as why:
            return why
        return None

    def emit(self, e: Emission, config: SparseInt8Config) -> None:
        parts = product_of(e, *INTEGER_MAINS)
        main, (output,) = parts.main, parts.outputs
        channels_first = type(main.op).__name__ == "IntegerConvolution"
        inputs = [main.inputs[0], weights(e, main.inputs[1], config.library)]
        value, after = main.outputs[0], parts.after
        if config.scaled:
            found = scaled_by(e, parts)
            assert found is not None, f"{e.node} has no scales that follow the product"
            value, after = found.value, found.after
            inputs += [_channels(e, main, "scale", found.scale), _channels(e, main, "bias", found.bias.to(value.type.dtype))]
        op = SparseIntegerLinear(config.library, value.type.dtype, *matrix_size(main.inputs[1]), channels_first, config.algorithm)
        if config.fused:
            e.call(replace(op, activation="relu"), inputs, (output,))
            return
        if not after:
            e.call(op, inputs, (output,))
            return
        result = e.temporary(value.type.shape, value.type.dtype, "product")
        e.views[result] = View(result, features_innermost(result.type, channels_first))
        planned = plan_after(e, result, renamed(after, value, result), (output,))
        e.call(op, inputs, (result,))
        emit_after(e, planned)


def relu_after(scaled: Scaled) -> bool:
    """Whether relu is all that follows the scales, and the library does it."""
    found = fused_after(scaled.after, scaled.value)
    return found is not None and not found.residual


def scaled_by(e: Emission, parts: Parts) -> Scaled | None:
    """The nodes after the sums as far as they are sums - share, a cast, * scale, + bias, and a cast to 16 bits; None if not."""
    features, _ = matrix_size(parts.main.inputs[1])
    value, after = parts.main.outputs[0], list(parts.after)
    share, scale, bias = torch.zeros(features), None, torch.zeros(features)
    while after:
        node = after.pop(0)
        kind = str(node.op)
        if value not in node.inputs or len(node.outputs) != 1 or any(value in n.inputs for n in after):
            return None
        (result,) = node.outputs
        if type(node.op).__name__ == "Cast":
            if result.type.dtype in HALVES:
                return None if scale is None else Scaled(scale, bias - share * scale, result, tuple(after))
            if result.type.dtype != torch.float32:
                return None
        else:
            given = _per_feature(e, node, value, features)
            if given is None:
                return None
            if kind == "Binary[sub]" and node.inputs[0] is value and scale is None:
                share = share + given
            elif kind == "Binary[mul]" and scale is None and value.type.dtype == torch.float32:
                scale = given
            elif kind == "Binary[add]" and scale is not None:
                bias = bias + given
            else:
                return None
        value = result
    return None


def _per_feature(e: Emission, node: Node, value: Value, features: int) -> Tensor | None:
    """The other operand as (features,) float32, where it is a constant of one number a feature, or of one number."""
    others = [v for v in node.inputs if v is not value]
    tensor = e.constant(others[0]) if len(others) == 1 else None
    if tensor is None:
        return None
    if tensor.numel() == 1:
        return tensor.float().reshape(1).expand(features)
    rank = value.type.rank
    axis = 1 if rank == 4 and "Convolution" in _main_name(e) else rank - 1
    shape = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    wanted = tuple(features if d == axis else 1 for d in range(rank))
    return tensor.float().reshape(features) if shape == wanted else None


def _main_name(e: Emission) -> str:
    inner: Sequence[Node] = e.node.op.body.nodes if hasattr(e.node.op, "body") else (e.node,)
    return next(type(n.op).__name__ for n in inner if type(n.op).__name__ in INTEGER_MAINS)


def _channels(e: Emission, main: Node, name: str, tensor: Tensor) -> Value:
    """A constant of one number a feature, made for this node."""
    return e.packed(main.inputs[1], f"{name}.of.{main.outputs[0].name}", lambda weight: tensor)


TEMPLATE = SparseInt8Template()
