"""Matrix products by cuBLASLt: with bias and relu or gelu in its own kernel, or with one pointwise launch after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import View, contiguous, dense_like
from torchsmith.backends.cuda.library import HALVES, LibraryLinear
from torchsmith.backends.cuda.tactics.after import emit_after, plan_after, renamed
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Shape, same
from torchsmith.ir.graph import Node
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType

MAINS = ("Linear", "MatMul", "Convolution")
ACTIVATIONS = {"Unary[relu]": "relu", "Gelu(approximate=tanh)": "gelu"}


@dataclass(frozen=True)
class CublasConfig:
    """variant: "fused", all in the library's kernel, or "then", the product and a pointwise launch."""

    variant: str


class CublasTemplate:
    name = "cublas"
    kinds = frozenset({"gemm", "Linear", "MatMul"})
    config_type = CublasConfig

    def configs(self, e: Emission) -> Sequence[CublasConfig]:
        parts = product_of(e)
        if activation_of(parts) is not None:
            return [CublasConfig("fused")]
        self.emit(Emission(e.node, e.views, e._packed), CublasConfig("then"))  # whether what follows can be written
        return [CublasConfig("then")]

    def emit(self, e: Emission, config: CublasConfig) -> None:
        parts = product_of(e)
        main, (output,) = parts.main, parts.outputs
        inputs, is_convolution = list(main.inputs), type(main.op).__name__ == "Convolution"
        if is_convolution:
            inputs[1] = e.packed(inputs[1], "matrix", lambda t: t.flatten(1))
        if config.variant == "fused":
            activation = activation_of(parts)
            assert activation is not None, f"{e.node} has no epilogue of cuBLASLt's"
            if activation != "none" and len(inputs) == 2:
                inputs.append(e.packed(inputs[1], "no_bias", lambda t: t.new_zeros(t.shape[0])))
            op: Op = main.op if type(main.op).__name__ == "MatMul" else LibraryLinear(activation, is_convolution)
            e.call(op, inputs, (output,))
            return
        result = e.temporary(main.outputs[0].type.shape, main.outputs[0].type.dtype, "product")
        e.views[result] = View(result, features_innermost(result.type, is_convolution))
        planned = plan_after(e, result, renamed(parts.after, main.outputs[0], result), (output,))
        op = main.op if type(main.op).__name__ == "MatMul" else LibraryLinear("none", is_convolution)
        e.call(op, inputs, (result,))
        emit_after(e, planned)


def features_innermost(type: TensorType, channels_first: bool) -> Shape:
    """The strides in which the library gives its result."""
    return dense_like(type, (0, *range(2, type.rank), 1)) if channels_first else contiguous(type.shape)


def product_of(e: Emission) -> Parts:
    """The node as a product of the library's. Raises Unsupported where it is none."""
    inner: Sequence[Node] = e.node.op.body.nodes if hasattr(e.node.op, "body") else (e.node,)
    if sum(type(n.op).__name__ in MAINS for n in inner) != 1:
        raise Unsupported("the node is not one matrix product")
    parts = parts_of(e.node, *MAINS)
    main, op = parts.main, parts.main.op
    x = main.inputs[0]
    if parts.before:
        raise Unsupported("cuBLASLt runs nothing before the product")
    if len(parts.outputs) > 1:
        raise Unsupported("the node has several outputs")
    if x.type.dtype not in (*HALVES, torch.float32):
        raise Unsupported(f"a product of {x.type.dtype}")
    if type(op).__name__ == "Convolution":
        weight = main.inputs[1].type.shape
        plain = set(op.stride) == {1} and op.groups == 1 and not any(map(any, op.padding))  # type: ignore[attr-defined]
        if not plain or not all(same(n, 1) for n in weight[2:]):
            raise Unsupported("the convolution is not 1×1 with stride 1, no padding and one group")
        if e.constant(main.inputs[1]) is None:
            raise Unsupported("the weights are not known when the engine is built")
    return parts


def activation_of(parts: Parts) -> str | None:
    """The activation that is all that follows ("none" where nothing does); None where the library cannot do what follows."""
    if not parts.after:
        return "none"
    kinds = [str(n.op) for n in parts.after]
    if type(parts.main.op).__name__ == "MatMul" or len(kinds) > 1 or parts.main.outputs[0].type.dtype not in HALVES:
        return None
    return ACTIVATIONS.get(kinds[0])


TEMPLATE = CublasTemplate()
