"""A copy of the user's model to trace, so that nothing which tracing does to a module reaches theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def private_copy(module: nn.Module) -> nn.Module:
    """The module with its Python state copied and its tensors shared.

    Tracing runs the model's own code, which may count calls, fill caches or keep tensors; here it does so to the copy.
    Parameters and buffers are the original's, and must not be written to. A module that cannot be copied (it holds a lock,
    an open file) is returned as it is.
    """
    try:
        return copy.deepcopy(module, memo=_shared(module))
    except (TypeError, RuntimeError, NotImplementedError):  # what Python and torch raise for an object that cannot be copied
        return module


def _shared(module: nn.Module) -> dict[int, Any]:
    """What deepcopy is not to copy: tensors, wherever a module keeps them, and ScriptModules, which tracing does not run."""
    memo: dict[int, Any] = {}
    for child in module.modules():
        if isinstance(child, torch.jit.ScriptModule):
            memo[id(child)] = child
            continue
        kept = vars(child)
        for table in (kept, kept.get("_parameters") or {}, kept.get("_buffers") or {}):
            memo.update({id(value): _fit(value) for value in table.values() if isinstance(value, torch.Tensor)})
    return memo


def _fit(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself; for a parameter made in inference mode, which export cannot take, one that shares its memory."""
    if tensor.is_inference() and tensor.requires_grad:
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor


def device_of(module: nn.Module) -> torch.device | None:
    """The device of the first parameter or buffer, None for a module without any."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return None
