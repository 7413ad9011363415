"""A ScriptModule whose control flow cannot be exported: its submodules one by one, the control flow around them as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from torchsmith.capture import diagnose
from torchsmith.capture.export import Captured, capture
from torchsmith.capture.fits import fits, misfit
from torchsmith.capture.private import device_of
from torchsmith.capture.torchscript import Scripted
from torchsmith.config import CaptureConfig
from torchsmith.errors import CaptureError, InvalidInput
from torchsmith.inputs import ExampleInputs, resolve


@dataclass(frozen=True)
class Part:
    """A submodule as an exported program, for the inputs that it was called with. path: its name in the ScriptModule."""

    path: str
    captured: Captured


@dataclass(frozen=True)
class Split:
    """What of a ScriptModule can be exported. script: a copy of it, whose state is as the user's was. why: what the rest does."""

    script: torch.jit.ScriptModule
    parts: tuple[Part, ...]
    why: str


def split(script: torch.jit.ScriptModule, inputs: ExampleInputs, why: str, config: CaptureConfig | None = None) -> Split:
    """Find the largest submodules that can be exported.

    The module is run twice on a copy, since a stateful one often starts with a different first call; every submodule that the
    second call reaches is tried for the inputs it has there, its own submodules where that fails. Sizes are fixed.

    Raises InvalidInput where the module itself fails on these inputs.
    """
    inputs = inputs.on(device_of(script))
    trial = copy.deepcopy(script)
    tree = Scripted.of(trial, tracing=False)
    try:
        with torch.no_grad():
            tree(*inputs.args, **inputs.kwargs)
            calls: list[tuple[str, tuple[Any, ...]]] = []
            tree.ts.session.calls = calls
            tree(*inputs.args, **inputs.kwargs)
    except Exception as error:  # the module's own code may raise anything; it becomes the cause of what is raised
        raise diagnose.told(error, script, inputs) from error
    scripts = {m.ts.path: m.ts.script for m in tree.modules() if isinstance(m, Scripted)}
    parts: list[Part] = []
    for path, args in calls:
        inside = any(path == p.path or path.startswith(f"{p.path}.") for p in parts)
        if path and not (inside and not any(path == p.path for p in parts)):
            part = _captured(scripts[path], path, args, parts, config)
            parts += [part] if part else []
    return Split(copy.deepcopy(script), tuple(parts), why)


def _captured(module: Any, path: str, args: tuple[Any, ...], parts: list[Part], config: CaptureConfig | None) -> Part | None:
    """The submodule as a part; None where it cannot be one, does nothing, or is one already for such inputs."""
    if any(p.path == path and misfit(p.captured.program, args, {}) is None for p in parts):
        return None
    try:
        captured = capture(module, resolve(args), config)
    except (CaptureError, InvalidInput):  # its submodules are tried next
        return None
    return Part(path, captured) if any(n.op == "call_function" for n in captured.program.graph.nodes) else None


class HybridScript(nn.Module):
    """A ScriptModule in which some submodules are compiled; the same call, the same methods, the same state.

    script: the ScriptModule, which keeps the state and everything that is not compiled. parts: (path, program, compiled) for
    each submodule: `compiled` is called in the place of the submodule wherever the call fits `program`.
    """

    def __init__(self, script: torch.jit.ScriptModule, parts: Sequence[tuple[str, ExportedProgram, Callable[..., Any]]]) -> None:
        super().__init__()
        self.training = False
        self.__dict__["script"], self.__dict__["parts"] = script, tuple(parts)  # past nn.Module: a ScriptModule is not its child
        chosen: dict[str, list[tuple[ExportedProgram, Callable[..., Any]]]] = {}
        for path, program, compiled in parts:
            chosen.setdefault(path, []).append((program, compiled))
        self.tree = Scripted.of(script, tracing=False)
        _put(self.tree, "", chosen)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.tree(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.script, name)  # the ScriptModule's own methods and attributes, such as reset_states()


class _Choice(nn.Module):
    """A submodule with its compiled forms, each for the calls that fit it."""

    def __init__(self, script: torch.jit.ScriptModule, forms: list[tuple[ExportedProgram, Callable[..., Any]]]) -> None:
        super().__init__()
        self.__dict__["script"], self.__dict__["forms"] = script, [(fits(program), compiled) for program, compiled in forms]

    def forward(self, *args: Any) -> Any:
        for fit, compiled in self.forms:
            if fit(args):
                return compiled(*args)
        return self.script(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["script"], name)


def _put(module: Scripted, path: str, chosen: dict[str, Any]) -> bool:
    """Put compiled forms below a module; submodules without any go back to TorchScript. Whether there were any."""
    found = False
    for name, child in list(module._modules.items()):
        at = f"{path}.{name}".lstrip(".")
        assert isinstance(child, Scripted), type(child)
        if at in chosen:
            module._modules[name] = _Choice(child.ts.script, chosen[at])
            found = True
        elif _put(child, at, chosen):
            found = True
        else:
            module._modules[name] = child.ts.script
    return found
