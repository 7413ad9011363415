"""Backends: what turns a graph into engine bytes, and engine bytes into something callable."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from torchsmith.config import BuildConfig
from torchsmith.errors import BackendUnavailable, InvalidOption
from torchsmith.target import Target, this_cpu

if TYPE_CHECKING:
    from torchsmith.ir.graph import Graph, Node
    from torchsmith.quantize.abilities import Int8Abilities

# Each is a package here whose BACKEND keeps the protocol; for a device, the first that is available is the default.
DEVICES: dict[str, tuple[str, ...]] = {"cpu": ("openvino", "reference"), "cuda": ("cuda", "tensorrt", "reference")}


class Runner(Protocol):
    """A loaded engine: from inputs to outputs."""

    def __call__(self, inputs: Sequence[Tensor], /) -> list[Tensor]: ...


class Backend(Protocol):
    """One kind of engine."""

    @property
    def name(self) -> str: ...

    @property
    def int8(self) -> Int8Abilities:
        """What its engines do of int8."""

    def available(self) -> str | None:
        """None, or the sentence that says why it cannot be used on this machine."""

    def excludes(self, target: Target) -> str | None:
        """None, or the sentence that says why none of its engines runs on such a device."""

    def refuses(self, node: Node, target: Target) -> str | None:
        """None, or the sentence that says why the node cannot run in this backend's engines."""

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        """The engine as data. Raises Unsupported where the graph as a whole cannot be built."""

    def load(self, engine: bytes, target: Target) -> Runner:
        """A thread-safe callable from inputs to outputs. Raises EngineMismatch where the engine cannot run here."""


def names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in DEVICES.values() for name in names))


def get(name: str) -> Backend:
    """The backend of that name. Raises InvalidOption where there is none, BackendUnavailable where it cannot be used here."""
    if name not in names():
        raise InvalidOption(f"backend {name!r} is not known; torchsmith has {', '.join(names())}")
    backend: Backend = importlib.import_module(f"torchsmith.backends.{name}").BACKEND
    if reason := backend.available():
        raise BackendUnavailable(f"the {name} backend cannot be used here: {reason}")
    return backend


def default_for(target: Target) -> Backend:
    """The fastest available backend for a device."""
    for name in DEVICES[target.device]:
        backend: Backend = importlib.import_module(f"torchsmith.backends.{name}").BACKEND
        if backend.available() is None and backend.excludes(target) is None:
            return backend
    raise AssertionError("the reference backend is always available")


def target_of(device: str) -> Target:
    """This machine's device of a kind. Raises BackendUnavailable for a GPU where there is none."""
    if device == "cpu":
        return this_cpu()
    if not torch.cuda.is_available():
        raise BackendUnavailable("device='cuda' was asked for, and PyTorch finds no GPU here; use device='cpu'")
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}", (), torch.cuda.get_device_name())


def _elsewhere(arch: str) -> Target:
    """The target, by this machine's own device where it is one of that kind."""
    target = Target.parse(arch)
    if target.device == "cuda" and torch.cuda.is_available() and (here := target_of("cuda")).arch == target.arch:
        return here
    return target


def choose(name: str | None, device: torch.device, arch: str | None = None) -> tuple[Backend, Target]:
    """The backend to build with, and what to build for: the one asked for, or the device's default.

    arch: what to build for instead of this machine's device, as `Target.parse` reads it; the device need not be here.
    Raises InvalidOption or BackendUnavailable; the latter also where the backend is for other devices.
    """
    target = target_of(device.type) if arch is None else _elsewhere(arch)
    device = torch.device(target.device)
    if name is None:
        return default_for(target), target
    backend = get(name)
    if name not in DEVICES[device.type]:
        kinds = " and ".join(kind for kind, names in DEVICES.items() if name in names)
        hint = "device='cpu'" if "cpu" in kinds else "target='sm_89' for one that is elsewhere"
        raise BackendUnavailable(
            f"the {name} backend is for device {kinds}, and the model is on {device}; move it to such a device, or give {hint}"
        )
    if reason := backend.excludes(target):
        raise BackendUnavailable(f"the {name} backend cannot build for {target}: {reason}")
    return backend, target
