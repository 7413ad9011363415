"""A ScriptModule whose control flow cannot be exported: its submodules one by one, the control flow around them as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.capture import diagnose
from torchsmith.capture.export import Captured, capture
from torchsmith.capture.fits import misfit
from torchsmith.capture.private import device_of
from torchsmith.capture.script_code import NotConvertible
from torchsmith.capture.torchscript import Scripted
from torchsmith.config import CaptureConfig, Config
from torchsmith.errors import CaptureError, FullCompilationRequired, InvalidInput
from torchsmith.inputs import ExampleInputs, resolve


@dataclass(frozen=True)
class Part:
    """A submodule as an exported program, for the inputs that it was called with. path: its name in the ScriptModule."""

    path: str
    captured: Captured


@dataclass(frozen=True)
class Split:
    """What of a ScriptModule can be exported. script: a copy of it, whose state is as the user's was."""

    script: torch.jit.ScriptModule
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The module's class."""
        return str(self.script.original_name)

    @property
    def device(self) -> torch.device:
        return device_of(self.script) or torch.device("cpu")


def split(script: torch.jit.ScriptModule, inputs: ExampleInputs, why: NotConvertible, config: Config | None = None) -> Split:
    """Find the largest submodules that can be exported.

    The module is run twice on a copy, since a stateful one often starts with a different first call; every submodule that the
    second call reaches is tried for the inputs it has there, its own submodules where that fails. Sizes are fixed.

    why: what keeps it from being exported whole. It is raised again where the ScriptModule is inside of a module of the user's,
    and is the reason of a FullCompilationRequired. Raises InvalidInput where the module itself fails on these inputs.
    """
    config = config or Config()
    if not isinstance(script, torch.jit.ScriptModule):
        raise why
    if config.partition.require_full_compilation:
        raise FullCompilationRequired(
            f"require_full_compilation=True, and only parts of this model could be compiled: {why}"
        ) from why
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
            part = _captured(scripts[path], path, args, parts, config.capture)
            parts += [part] if part else []
    return Split(copy.deepcopy(script), tuple(parts))


def _captured(module: Any, path: str, args: tuple[Any, ...], parts: list[Part], config: CaptureConfig | None) -> Part | None:
    """The submodule as a part; None where it cannot be one, does nothing, or is one already for such inputs."""
    if any(p.path == path and misfit(p.captured.program, args, {}) is None for p in parts):
        return None
    try:
        captured = capture(module, resolve(args), config)
    except (CaptureError, InvalidInput):  # its submodules are tried next
        return None
    return Part(path, captured) if any(n.op == "call_function" for n in captured.program.graph.nodes) else None
