"""How ATen reaches our ops: one converter per overload, found by the overload itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

Converter = Callable[..., Any]
CONVERTERS: dict[OpOverload, Converter] = {}
# Converters of ops that another library may register: by the op's name, as in `namespace::op.overload`.
LATE: dict[str, Converter] = {}


def converter(*overloads: OpOverload) -> Callable[[Converter], Converter]:
    """Register a function as the converter of `overloads`.

    It is called with the ATen node's own arguments (tensors as `Value`s, sizes as numbers or expressions), adds ops to
    the graph under construction and returns what the node gives: a `Value`, or a tuple of them. It raises Unsupported,
    with the reason, for what it cannot convert.
    """

    def register(function: Converter) -> Converter:
        for overload in overloads:
            assert overload not in CONVERTERS, f"{overload} has two converters"
            CONVERTERS[overload] = function
        return function

    return register


def late_converter(*names: str) -> Callable[[Converter], Converter]:
    """`converter`, for ops of a library that is not imported for their sake; a graph that has such ops has imported it."""

    def register(function: Converter) -> Converter:
        for name in names:
            assert name not in LATE, f"{name} has two converters"
            LATE[name] = function
        return function

    return register


def load_all() -> dict[OpOverload, Converter]:
    """Import every op file, and give the converters."""
    package = importlib.import_module("torchsmith.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"torchsmith.ops.{module.name}")
    for name in list(LATE):
        if (overload := _registered(name)) is not None:
            CONVERTERS.setdefault(overload, LATE[name])
    return CONVERTERS


def _registered(name: str) -> OpOverload | None:
    """The op of this name, None as long as no library has registered it."""
    namespace, _, op = name.partition("::")
    op, _, overload = op.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op, None)
    found: OpOverload | None = getattr(packet, overload or "default", None)
    return found
