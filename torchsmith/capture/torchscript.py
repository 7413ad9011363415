"""A ScriptModule run by Python, statement by statement, so that torch.export sees its operators.

TorchScript's own interpreter hides everything from export. Here its code is walked instead: control flow on sizes and
constants is taken as the examples take it, and what is left are calls of ATen operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchsmith.capture.script_code import Code, NotConvertible, translate


@dataclass
class Session:
    """What the modules of one converted tree share.

    tracing: an exported program is being made, so state may be neither read nor written. state: the attributes that some
    method assigns, each with the type it belongs to. tensors: the parameter made of each tensor, by its id, so that tied ones
    stay tied. calls: where calls of `forward` are listed, by path, while recording.
    """

    tracing: bool
    state: frozenset[tuple[str, str]] = frozenset()
    tensors: dict[int, nn.Parameter] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...]]] | None = None


@dataclass(frozen=True)
class Origin:
    """The ScriptModule behind a converted module, its path from the root, and what is known of its methods so far."""

    script: Any
    path: str
    session: Session
    codes: dict[str, Code] = field(default_factory=dict)
    native: dict[str, bool] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.script.original_name} ({self.path})" if self.path else str(self.script.original_name)


class Scripted(nn.Module):
    """A ScriptModule as a plain one, with the same submodules, parameters, buffers and `forward`.

    Runs the ScriptModule's own code on its own tensors. Attributes that are not parameters or buffers stay in the ScriptModule.
    The names of what is ours begin with `ts`, out of the way of the ScriptModule's.
    """

    ts: Origin

    def __init__(self, script: Any, path: str, session: Session) -> None:
        super().__init__()
        self.training = getattr(script, "training", False)  # a frozen module has no mode any more
        self.ts = Origin(script, path, session)
        for name, parameter in script.named_parameters(recurse=False):
            shared = session.tensors.setdefault(id(parameter), nn.Parameter(parameter.detach(), requires_grad=False))
            self.register_parameter(name, shared)
        for name, buffer in script.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in script.named_children():
            self.add_module(name, Scripted(child, f"{path}.{name}".lstrip("."), session))
        if script._c._has_method("forward"):
            self.__dict__["forward"] = self.ts_forward()

    @staticmethod
    def of(script: torch.jit.ScriptModule, tracing: bool = True) -> Scripted:
        """Convert a whole ScriptModule. With `tracing`, it refuses to touch state, which raises NotConvertible when it is run."""
        return Scripted(script, "", Session(tracing, frozenset(assigned(script))))

    def ts_forward(self) -> Callable[..., Any]:
        """`forward` with the signature that the ScriptModule declares, which export and messages read."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not kwargs and len(args) == len(parameters):
                return self.ts_call("forward", args)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return self.ts_call("forward", bound.args)

        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        arguments = self.ts.script._c._get_method("forward").schema.arguments[1:]
        parameters = [
            inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else empty) for a in arguments
        ]
        signature = inspect.Signature(parameters)
        forward.__signature__ = signature  # type: ignore[attr-defined]
        return forward

    def ts_call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Run a method. Raises what the code raises, and NotConvertible."""
        if method != "forward" and self.ts_native(method):
            return self.ts.script._c._get_method(method)(*args)
        if self.ts.session.calls is not None and method == "forward":
            self.ts.session.calls.append((self.ts.path, args))
        code = self.ts_code(method)
        frame = code.frame((self, *args))
        if self.ts.session.tracing:
            for i, (slot, _) in enumerate(code.tensors):
                frame[slot] = self._buffers[f"ts_{method}_constant_{i}"]
        return code.run(frame)

    def ts_native(self, method: str) -> bool:
        """Whether TorchScript may run a method by itself: nothing is traced, and no module that it reaches is ours."""
        if self.ts.session.tracing or self.ts.session.calls is not None:
            return False
        if method not in self.ts.native:
            self.ts.native[method] = True  # for a method that calls itself
            graph = self.ts.script._c._get_method(method).graph
            read = {node.s("name") for node in graph.findAllNodes("prim::GetAttr")}
            called = {node.s("name") for node in graph.findAllNodes("prim::CallMethod")} - {"forward"}
            ours = any(not isinstance(self._modules[name], torch.jit.ScriptModule) for name in read & self._modules.keys())
            self.ts.native[method] = not ours and all(self.ts_native(m) for m in called if self.ts.script._c._has_method(m))
        return self.ts.native[method]

    def ts_code(self, method: str) -> Code:
        if method not in self.ts.codes:
            self.ts.codes[method] = translate(self.ts.script._c._get_method(method))
        return self.ts.codes[method]

    def ts_lift(self) -> Scripted:
        """Make buffers of the tensors that the code holds as constants, as export wants them before it traces."""
        for module in self.modules():
            assert isinstance(module, Scripted), type(module)
            for method in module.ts.script._c._method_names():
                for i, (_, value) in enumerate(module.ts_code(method).tensors):
                    module.register_buffer(f"ts_{method}_constant_{i}", value, persistent=False)
        return self

    def ts_read(self, name: str) -> Any:
        if name in self._modules:
            return self._modules[name]
        if not self.ts.session.tracing:
            return getattr(self.ts.script, name)
        if (self.ts.script._c.qualified_name, name) in self.ts.session.state:
            raise NotConvertible(f"{self.ts} reads self.{name}, which it changes from call to call")
        return getattr(self, name) if name in self._parameters or name in self._buffers else getattr(self.ts.script, name)

    def ts_write(self, name: str, value: Any) -> None:
        if self.ts.session.tracing:
            raise NotConvertible(f"{self.ts} keeps state in self.{name} from call to call")
        setattr(self.ts.script, name, value)


def assigned(script: torch.jit.ScriptModule) -> set[tuple[str, str]]:
    """The attributes that methods of this module and its submodules assign: (name of the type, name of the attribute)."""
    found = set()
    for module in script.modules():
        code: Any = module._c
        for method in code._method_names():
            for node in code._get_method(method).graph.findAllNodes("prim::SetAttr"):
                found.add((str(next(node.inputs()).type()), node.s("name")))
    return found


def replace_scripts(module: nn.Module) -> nn.Module:
    """Put a converted module in the place of every ScriptModule inside a module of ours, which is changed and returned."""
    made: dict[int, Scripted] = {}
    for owner in list(module.modules()):
        if isinstance(owner, (torch.jit.ScriptModule, Scripted)):
            continue
        for name, child in owner._modules.items():
            if isinstance(child, torch.jit.ScriptModule):
                made.setdefault(id(child), Scripted.of(child).ts_lift())
                owner._modules[name] = made[id(child)]
    return module


def has_scripts(module: nn.Module) -> bool:
    return any(isinstance(m, Scripted) for m in module.modules())
