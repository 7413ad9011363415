"""Engines that are loaded in this process: each once, and for as long as a module or a program has it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchsmith.errors import EngineMismatch
from torchsmith.runtime.spec import EngineSpec
from torchsmith.runtime.tensors import to_bytes, view_of

if TYPE_CHECKING:
    from torchsmith.backends import Runner


class LoadedEngine:
    """A runner, kept alive by those that hold this object. Copies are the same engine."""

    __slots__ = ("__weakref__", "backend", "id", "runner")

    def __init__(self, backend: str, id: str, runner: Runner) -> None:
        self.backend, self.id, self.runner = backend, id, runner

    def __deepcopy__(self, memo: object) -> LoadedEngine:
        return self

    def __repr__(self) -> str:
        return f"LoadedEngine({self.backend}, {self.id[:12]})"


_lock = threading.Lock()  # guards the tables below; never held while an engine loads
_loading: dict[tuple[str, str, str], threading.Lock] = {}
_loaded: weakref.WeakValueDictionary[tuple[str, str, str], LoadedEngine] = weakref.WeakValueDictionary()
# a program's only hold on its engine is the tensor with the bytes
_of_tensor: MutableMapping[Tensor, dict[str, LoadedEngine]] = WeakTensorKeyDictionary()


def obtain(spec: EngineSpec, engine: Tensor, device: torch.device, *, verified: bool = False) -> LoadedEngine:
    """The engine of these bytes, loaded now unless it is already.

    engine: 1-D uint8. device: where it runs. verified: the caller has checked the bytes against `spec.id`.
    Raises EngineMismatch where the bytes are not what the spec says, or cannot run on this machine; BackendUnavailable.
    """
    if engine.dtype != torch.uint8 or engine.dim() != 1:
        raise EngineMismatch(f"an engine is a 1-D uint8 tensor; this one is {engine.dim()}-D {engine.dtype}")
    engine = engine.detach().cpu().contiguous()
    if not verified and hashlib.sha256(view_of(engine)).hexdigest() != spec.id:
        raise EngineMismatch(
            f"the bytes of the {spec.backend} engine {spec.id[:12]} have changed since it was built; compile the model again"
        )
    key = (spec.backend, spec.id, str(device))
    with _lock:
        turn = _loading.setdefault(key, threading.Lock())
    with turn:  # a second thread waits for the first one's engine
        found = _loaded.get(key)
        if found is None:
            found = LoadedEngine(spec.backend, spec.id, _load(spec, engine, device))
            with _lock:
                _loaded[key] = found
                weakref.finalize(found, _loading.pop, key, None)
    return found


def engine_of(spec: EngineSpec, engine: Tensor, device: torch.device) -> LoadedEngine:
    """The same for a program's call, whose only hold on the engine is the tensor with its bytes."""
    per_device = _of_tensor.get(engine)
    if per_device is not None and (found := per_device.get(str(device))) is not None and found.id == spec.id:
        return found
    found = obtain(spec, engine, device)
    with _lock:
        _of_tensor.setdefault(engine, {})[str(device)] = found
    return found


def _load(spec: EngineSpec, engine: Tensor, device: torch.device) -> Runner:
    from torchsmith import backends

    if spec.backend not in backends.names():
        raise EngineMismatch(
            f"an engine was built by the backend {spec.backend!r}, and this torchsmith has {', '.join(backends.names())}; "
            "use the torchsmith that built it, or compile the model again"
        )
    backend = backends.get(spec.backend)
    target = backends.target_of(device.type)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return backend.load(to_bytes(engine), target)
