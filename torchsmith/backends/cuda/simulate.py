"""Run an engine's steps on CPU tensors, kernels in Triton's interpreter: the memory plan, the layouts and every kernel, no GPU.

The interpreter must be chosen before Triton is imported (TRITON_INTERPRET=1), so this is for processes of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.memory import Lifetime, arrange
from torchsmith.backends.cuda.steps import Hook, Launch, Step
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Value


def simulate(
    steps: Sequence[Step],
    inputs: Mapping[Value, Tensor],
    outputs: Sequence[Value],
    constants: Mapping[Value, Tensor],
    views: Mapping[Value, View],
    env: Mapping[str, int],
) -> list[Tensor]:
    """The outputs' values. Storage that is not written is NaN, and storage is shared as the engine shares it."""
    storage: dict[Value, Tensor] = {v: t.contiguous().reshape(-1) for v, t in (*inputs.items(), *constants.items())}
    for root, memory in _arena(steps, outputs, views, storage, env).items():
        storage[root] = memory

    def tensor(value: Value) -> Tensor:
        view, shape = views[value], bind(value.type.shape, dict(env))
        flat = storage[view.root]
        return flat.as_strided(shape, bind(view.strides, dict(env)), flat.storage_offset() + bind(view.offset, dict(env)))

    for step in steps:
        if isinstance(step, Launch):
            _interpret(step, tensor, dict(env))
            continue
        given = step.op.bound(dict(env)).reference(*(tensor(v) for v in step.inputs))
        for value, result in zip(step.outputs, given if isinstance(given, tuple) else (given,), strict=True):
            tensor(value).copy_(result)
    return [tensor(v).clone() for v in outputs]


def _arena(
    steps: Sequence[Step],
    outputs: Sequence[Value],
    views: Mapping[Value, View],
    given: Mapping[Value, Tensor],
    env: Mapping[str, int],
) -> dict[Value, Tensor]:
    spans: dict[Value, list[int]] = {}
    for index, step in enumerate(steps):
        for value in step.touched:
            root = views[value].root
            if root not in given:
                spans.setdefault(root, [index, index])[1] = index
    for value in outputs:
        if (root := views[value].root) not in given:
            spans[root][1] = len(steps)
    numel = {root: max(1, bind(root.type.numel, dict(env))) for root in spans}
    lives = [Lifetime(r.name, first, last, numel[r] * r.type.dtype.itemsize) for r, (first, last) in spans.items()]
    offsets, size = arrange(lives)
    arena = torch.full((size + 256,), 255, dtype=torch.uint8)  # all ones: NaN in every floating dtype
    return {
        root: arena[offsets[root.name] : offsets[root.name] + numel[root] * root.type.dtype.itemsize].view(root.type.dtype)
        for root in spans
    }


def _interpret(step: Launch, tensor: Any, env: dict[str, int]) -> None:
    kernel = step.kernel
    function = getattr(importlib.import_module(kernel.module), kernel.function)
    given: dict[str, Any] = {n: v.function() if isinstance(v, Hook) else v for n, v in kernel.constants}
    if "PDL" in given:
        given["PDL"] = False
    for (name, _), argument in zip(kernel.types, step.arguments, strict=True):
        given[name] = tensor(argument) if isinstance(argument, Value) else bind(argument, env)
    function[tuple(bind(size, env) for size in step.grid)](**given)
