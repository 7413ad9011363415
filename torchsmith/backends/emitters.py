"""How a backend says which of its functions emits which op: one emitter an op, in the files of one package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torchsmith.ir.op import Op

Emitter = Callable[..., Any]


class Emitters:
    """Emitters by the classes of ops, and the decorator that registers them. package: whose modules have them.

    An emitter is called as `function(emission, op, *inputs)` with what stands for each input in the engine's library, and returns
    one such thing, or a tuple of them where the op has several. It raises Unsupported, with the reason, for what cannot be done.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._found: dict[type[Op], Emitter] = {}
        self._loaded = False

    def __call__(self, *kinds: type[Op]) -> Callable[[Emitter], Emitter]:
        def register(function: Emitter) -> Emitter:
            for kind in kinds:
                assert kind not in self._found, f"{kind.__name__} has two emitters"
                self._found[kind] = function
            return function

        return register

    def all(self) -> dict[type[Op], Emitter]:
        """Every emitter; the package's modules are imported the first time."""
        if not self._loaded:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")
            self._loaded = True
        return self._found
