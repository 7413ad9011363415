"""Convolutions by cuDNN: with bias, residual and relu in its own kernel, or alone with one pointwise launch after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import View, channels_last
from torchsmith.backends.cuda.library import HALVES, LibraryConvolution
from torchsmith.backends.cuda.tactics.after import emit_after, plan_after, plus_bias, renamed
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.convolution import Convolution


@dataclass(frozen=True)
class CudnnConfig:
    """variant: "fused", all in cuDNN's kernel, or "then", the convolution and a pointwise launch. benchmark: see `library.py`."""

    variant: str
    benchmark: bool


class CudnnTemplate:
    name = "cudnn"
    kinds = frozenset({"convolution", "gemm", "depthwise", "Convolution"})
    config_type = CudnnConfig

    def configs(self, e: Emission) -> Sequence[CudnnConfig]:
        parts = convolution_of(e)
        if fused_residual(parts) is not None:
            return [CudnnConfig("fused", False), CudnnConfig("fused", True)]
        self.emit(Emission(e.node, e.views, e._packed), CudnnConfig("then", False))  # whether what follows can be written
        return [CudnnConfig("then", False)]

    def emit(self, e: Emission, config: CudnnConfig) -> None:
        parts = convolution_of(e)
        main, (output,) = parts.main, parts.outputs
        op = cast(Convolution, main.op)
        (top, _), (left, _) = op.padding
        library = LibraryConvolution(pair(op.stride), (top, left), pair(op.dilation), op.groups, "none", config.benchmark)
        x, weight = main.inputs[0], in_channels_last(e, main.inputs[1])
        bias = main.inputs[2] if len(main.inputs) > 2 else None
        if config.variant == "fused":
            residual = fused_residual(parts)
            assert residual is not None, f"{e.node} has no epilogue of cuDNN's"
            if bias is None:
                bias = e.packed(main.inputs[1], "no_bias", lambda t: t.new_zeros(t.shape[0]))
            e.call(replace(library, activation="relu"), (x, weight, bias, *residual), (output,))
            return
        if bias is None and not parts.after:
            e.call(library, (x, weight), (output,))
            return
        result = e.temporary(main.outputs[0].type.shape, x.type.dtype, "convolved")
        e.views[result] = View(result, channels_last(result.type.shape))
        after, last = list[Node](), result
        if bias is not None:
            last, add = plus_bias(e, result, bias, axis=1)
            after.append(add)
        if parts.after:
            after += renamed(parts.after, main.outputs[0], last)
        else:
            after[-1] = Node(after[-1].op, after[-1].inputs, (output,), after[-1].origin)
        planned = plan_after(e, result, after, (output,))
        e.call(library, (x, weight), (result,))
        emit_after(e, planned)


def convolution_of(e: Emission) -> Parts:
    """The node as a convolution of cuDNN's. Raises Unsupported where it is none."""
    inner = e.node.op.body.nodes if hasattr(e.node.op, "body") else (e.node,)
    if not any(isinstance(n.op, Convolution) for n in inner):
        raise Unsupported("the node has no convolution")
    parts = parts_of(e.node, "Convolution")
    op, x = cast(Convolution, parts.main.op), parts.main.inputs[0]
    if parts.before:
        raise Unsupported("cuDNN runs nothing before the convolution")
    if len(parts.outputs) > 1:
        raise Unsupported("the node has several outputs")
    if x.type.rank != 4 or any(before != after for before, after in op.padding):
        raise Unsupported("cuDNN takes pictures, padded alike on opposite sides")
    if x.type.dtype not in (*HALVES, torch.float32):
        raise Unsupported(f"cuDNN's convolution of {x.type.dtype}")
    if e.constant(parts.main.inputs[1]) is None:
        raise Unsupported("the weights are not known when the engine is built")
    return parts


def fused_residual(parts: Parts) -> tuple[Value, ...] | None:
    """What cuDNN adds before relu (nothing, or one value) where relu is all that follows; None where it cannot do what follows."""
    main, shape = parts.main, parts.main.outputs[0].type
    weight = main.inputs[1].type.shape
    op = cast(Convolution, main.op)
    # its fused kernels are for tensor cores: 16 bits, vectors of eight channels
    if shape.dtype not in HALVES or op.groups != 1 or weight[0] % 8 or weight[1] % 8:
        return None
    kinds = [str(n.op) for n in parts.after]
    if kinds == ["Unary[relu]"]:
        return ()
    if kinds != ["Binary[add]", "Unary[relu]"]:
        return None
    others = [v for v in parts.after[0].inputs if v is not main.outputs[0]]
    return tuple(others) if len(others) == 1 and others[0].type.matches(shape) else None


def in_channels_last(e: Emission, weight: Value) -> Value:
    """The weights (K, C, R, S) with C innermost in memory."""
    packed = e.packed(weight, "krsc", lambda t: t.permute(0, 2, 3, 1))
    value = Value(f"{packed.name}.weight", TensorType(weight.type.shape, weight.type.dtype))
    e.views[value] = View(packed, channels_last(weight.type.shape))
    return value


def pair(sizes: Sequence[int]) -> tuple[int, int]:
    height, width = sizes
    return height, width


TEMPLATE = CudnnTemplate()
