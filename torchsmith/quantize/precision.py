"""Reduced precision as casts that stand in the graph."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection

import torch
from torch import Tensor

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.op import Op
from torchsmith.ops.promote import cast
from torchsmith.ops.quantize import FP8, Dequantize
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.quantize.policy import placing, role_of
from torchsmith.target import Target

# What a CPU needs to compute natively in a dtype.
NATIVE_FEATURES = {torch.bfloat16: {"avx512_bf16", "amx_bf16"}, torch.float16: {"avx512_fp16", "amx_fp16"}}
_told: set[str] = set()


def floats_of(enabled: Collection[torch.dtype], target: Target) -> tuple[torch.dtype, ...]:
    """The enabled floating dtypes that the target computes in natively, fastest first; float32 where there is none."""
    native = tuple(dtype for dtype in (torch.float16, torch.bfloat16) if dtype in enabled and _is_native(dtype, target))
    return (*native, torch.float32) if torch.float32 in enabled or not native else native


def _is_native(dtype: torch.dtype, target: Target) -> bool:
    return target.device == "cuda" or bool(NATIVE_FEATURES[dtype] & set(target.features))


def choose_precision(enabled: Collection[torch.dtype], target: Target) -> torch.dtype:
    """The fastest enabled floating dtype that the target computes in natively; float32 where there is none.

    The user is told once where none of those enabled is native. int8 and fp8 are not chosen: what runs in them is in the graph.
    """
    reduced = [dtype for dtype in (torch.float16, torch.bfloat16) if dtype in enabled]
    native = [dtype for dtype in reduced if _is_native(dtype, target)]
    chosen = native[0] if native else torch.float32
    if missing := [dtype for dtype in reduced if dtype not in native]:
        names = " and ".join(str(dtype) for dtype in missing)
        hint = "" if chosen != torch.float32 or torch.bfloat16 not in NATIVE_FEATURES else _bf16_hint(enabled, target)
        _tell_once(f"{target} does not compute in {names} natively; torchsmith takes {chosen}{hint}")
    return chosen


def eight_bits(enabled: Collection[torch.dtype], target: Target, abilities: Int8Abilities) -> tuple[torch.dtype, ...]:
    """Those of int8 and float8_e4m3fn that are enabled and that engines for the target compute in.

    The user is told once where fp8 is enabled, and they do not.
    """
    if FP8 in enabled and not abilities.computes_fp8(target):
        tell_of_fp8(target, abilities)
        enabled = set(enabled) - {FP8}
    return tuple(dtype for dtype in (torch.int8, FP8) if dtype in enabled)


def tell_of_fp8(target: Target, abilities: Int8Abilities) -> None:
    """Say, once, that what fp8 was enabled or trained for computes in floats of more bits."""
    since = abilities.fp8_since or 0
    hint = f", GPUs from sm_{since} on do" if since and target.device == "cuda" else ""
    _tell_once(f"{target} does not compute in {FP8} natively{hint}; layers that would take it compute in the other floats")


def _bf16_hint(enabled: Collection[torch.dtype], target: Target) -> str:
    native = torch.bfloat16 not in enabled and NATIVE_FEATURES[torch.bfloat16] & set(target.features)
    return "; it has bfloat16: add torch.bfloat16 to enabled_precisions" if native else ""


def _tell_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        warnings.warn(sentence, stacklevel=4)


def reduce_precision(graph: Graph, dtype: torch.dtype) -> Graph:
    """The same graph with its float32 work in `dtype` wherever the policy allows; inputs and outputs keep their types.

    Matrix work that says its own precision computes in that.
    """
    reduced = {dtype, *(node.precision for node in graph.nodes if node.precision)} - {torch.float32}
    if not reduced:
        return graph
    wide = placing(graph)
    with Builder(graph.ranges) as builder:
        values: dict[Value, Value] = {v: builder.input(v.type, v.name) for v in graph.inputs}
        values.update({v: builder.constant(t, v.name) for v, t in graph.constants.items()})
        casts: dict[tuple[Value, torch.dtype], Value] = {}

        def as_dtype(value: Value, wanted: torch.dtype) -> Value:
            if (value, wanted) not in casts:
                tensor = builder.constants.get(value)
                casts[value, wanted] = (
                    cast(value, wanted) if tensor is None else builder.constant(_saturated(tensor, wanted), value.name)
                )
            return casts[value, wanted]

        for node in graph.nodes:
            inputs, role, op = [values[v] for v in node.inputs], "wide" if node in wide else role_of(node), node.op
            compute = _compute_dtype(role, inputs, builder, node.precision or dtype, reduced)
            # what was float32 takes the compute dtype; other dtypes (integers, the user's own half) stay
            was_float = [v.type.dtype == torch.float32 and role != "pair" for v in node.inputs]
            op = _giving(op, dtype) if role == "pair" else op
            inputs = [as_dtype(v, compute) if f and v.type.dtype != compute else v for v, f in zip(inputs, was_float)]
            with builder.at(node.origin):
                given = op(*inputs)
            values.update(zip(node.outputs, given if isinstance(given, tuple) else (given,)))
        outputs = [as_dtype(values[v], v.type.dtype) if values[v].type.dtype != v.type.dtype else values[v] for v in graph.outputs]
        return builder.finish(outputs)


def _giving(op: Op, dtype: torch.dtype) -> Op:
    """A `Dequantize` to float32 as one to `dtype`."""
    return dataclasses.replace(op, dtype=dtype) if isinstance(op, Dequantize) and op.dtype == torch.float32 else op


def _saturated(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A constant in a smaller dtype. Finite numbers stay finite: attention masks hold float32's least, and a row of -inf is NaN."""
    limits = torch.finfo(dtype)
    finite = torch.isfinite(tensor)
    return torch.where(finite, tensor.clamp(limits.min, limits.max), tensor).to(dtype)


def _compute_dtype(role: str, inputs: list[Value], builder: Builder, own: torch.dtype, reduced: set[torch.dtype]) -> torch.dtype:
    """own: what the node computes in where it is matrix work. reduced: the smaller floats of the graph."""
    if role == "matrix":
        return own
    reaching = {v.type.dtype for v in inputs if v not in builder.constants} & reduced if role == "follow" else set()
    return reaching.pop() if len(reaching) == 1 else torch.float32
