"""The control flow of exported programs as plain Python, which costs nothing around the branches."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Body = Callable[..., Any]


def cond(condition: Any, then: Body, otherwise: Body, operands: Sequence[Any] = ()) -> Any:
    """torch.cond."""
    return (then if condition else otherwise)(*operands)


def while_loop(condition: Body, body: Body, carried: Sequence[Any], more: Sequence[Any] = ()) -> Any:
    """torch.while_loop. The values carried are copied once, as a loop without a turn must not return its own inputs."""
    carried = tuple(value.clone() if isinstance(value, Tensor) else value for value in carried)
    while condition(*carried, *more):
        carried = tuple(body(*carried, *more))
    return carried


def run_body(enabled: bool, body: Body, *args: Any) -> Any:
    """A region with gradients on or off; no gradient is recorded either way."""
    return body(*args)


def run_autocast(device: str, dtype: torch.dtype | None, enabled: bool, cache: bool | None, body: Body, *args: Any) -> Any:
    """A region under torch.autocast."""
    with torch.autocast(device, dtype, enabled, cache):
        return body(*args)


def call_subgraph(body: Body, identifier: str, *args: Any) -> Any:
    """A region that is compiled once and called in many places."""
    return body(*args)


def map_body(body: Body, mapped: Sequence[Any], more: Sequence[Any] = ()) -> Any:
    """torch's map over the first dimension."""
    turns = [body(*(value[i] for value in mapped), *more) for i in range(len(mapped[0]))]
    leaves, nesting = zip(*(pytree.tree_flatten(turn) for turn in turns), strict=True)
    return pytree.tree_unflatten([torch.stack(parts) for parts in zip(*leaves, strict=True)], nesting[0])


# Higher-order ops by name. What is not here is refused when a module is made of a program.
HIGHER_ORDER: dict[str, Callable[..., Any]] = {
    "cond": cond,
    "while_loop": while_loop,
    "wrap_with_set_grad_enabled": run_body,
    "wrap_with_autocast": run_autocast,
    "invoke_subgraph": call_subgraph,
    "map_impl": map_body,
}

_OPERATORS = "getitem add sub mul floordiv truediv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_ xor lshift rshift"
_TORCH = "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum"

# Functions on sizes that programs call beside ATen's ops.
SIZES: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()},
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH.split()},
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt")},
    "builtins.round": round,
}
