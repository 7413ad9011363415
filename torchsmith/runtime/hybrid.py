"""A TorchScript module that was compiled in parts, because its control flow or its state cannot be exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from torchsmith.capture.private import device_of
from torchsmith.capture.torchscript import Scripted
from torchsmith.errors import InvalidInput
from torchsmith.runtime.finished import FinishedModule


class CompiledPart(NamedTuple):
    """A compiled form of a submodule. path: the submodule's. call: raises InvalidInput for calls that are not its own."""

    path: str
    call: Callable[..., Any]


class HybridScript(FinishedModule):
    """A ScriptModule in which submodules are compiled; the same call, the same methods, the same state.

    script: the ScriptModule, which keeps the state and everything that is not compiled. parts: forms of submodules; each is
    called in the submodule's place wherever the call fits it, and where none fits the submodule runs in TorchScript. report:
    what became of the model, as plain data (see `torchsmith.explain`). No gradients are recorded.
    """

    script: torch.jit.ScriptModule
    parts: tuple[CompiledPart, ...]

    def __init__(self, script: torch.jit.ScriptModule, parts: Sequence[CompiledPart], report: Mapping[str, Any]) -> None:
        super().__init__()
        # past nn.Module: the ScriptModule is no child, since the tree has its submodules already
        self.__dict__["script"], self.__dict__["parts"], self.report = script, tuple(parts), dict(report)
        chosen: dict[str, list[Callable[..., Any]]] = {}
        for part in parts:
            chosen.setdefault(part.path, []).append(part.call)
        self.tree = Scripted.of(script, tracing=False)
        _put(self.tree, "", chosen)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.tree(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["script"], name)  # the ScriptModule's own, such as reset_states()

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return device_of(self.script) or torch.device("cpu")

    def __repr__(self) -> str:
        paths = ", ".join(dict.fromkeys(part.path for part in self.parts)) or "nothing"
        return f"HybridScript({self.script.original_name} in TorchScript, {paths} compiled, on {self.device})"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The ScriptModule's."""
        return self.script.state_dict(*args, **kwargs)

    def __copy__(self) -> HybridScript:
        return HybridScript(self.script, self.parts, copy.deepcopy(self.report))

    def __deepcopy__(self, memo: dict[int, Any]) -> HybridScript:
        """A module with its own state, and the same engines."""
        parts = [CompiledPart(part.path, copy.deepcopy(part.call, memo)) for part in self.parts]
        return HybridScript(copy.deepcopy(self.script), parts, copy.deepcopy(self.report))


class _Choice(nn.Module):
    """A submodule with its compiled forms."""

    def __init__(self, script: torch.jit.ScriptModule, forms: Sequence[Callable[..., Any]]) -> None:
        super().__init__()
        self.__dict__["script"], self.__dict__["forms"] = script, tuple(forms)

    def forward(self, *args: Any) -> Any:
        for form in self.forms:
            try:
                return form(*args)
            except InvalidInput:  # forms check a call before they do anything; it is another form's, or TorchScript's
                continue
        return self.script(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["script"], name)


def _put(module: Scripted, path: str, chosen: Mapping[str, Sequence[Callable[..., Any]]]) -> bool:
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
