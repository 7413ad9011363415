"""The base of every op: attributes, types in and out, and what it means in plain PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from torchsmith.ir.dim import bind, symbols_in
from torchsmith.ir.types import TensorType

if TYPE_CHECKING:
    from torchsmith.ir.graph import Value

REGISTRY: dict[str, type[Op]] = {}


@dataclass(frozen=True)
class Op:
    """A subclass is a frozen dataclass whose fields are its attributes: numbers, strings, dtypes, sizes, and tuples of these.

    A size in an attribute may be symbolic; `reference` always sees numbers (`bound` puts them in first).
    """

    # True where the value is computed by moving elements about, so that any dtype is exact.
    moves_data: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        assert cls.__name__ not in REGISTRY, f"two ops are called {cls.__name__}"
        REGISTRY[cls.__name__] = cls

    def infer(self, *inputs: TensorType) -> TensorType | tuple[TensorType, ...]:
        """The types of the outputs. Raises Unsupported where the op cannot take these inputs."""
        raise NotImplementedError

    def reference(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the op means, in plain PyTorch, with the dtypes that `infer` promises."""
        raise NotImplementedError

    def __call__(self, *inputs: Value) -> Any:
        """Add the op to the graph under construction; gives its Value, or a tuple of them where it has several."""
        from torchsmith.ir.builder import current

        return current().add(self, *inputs)

    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def symbols(self) -> set[str]:
        return set().union(*(symbols_in(v) for v in self.attributes().values())) if self.attributes() else set()

    def bound(self, env: dict[str, int]) -> Op:
        """The same op with its symbolic sizes replaced by numbers."""
        if not self.symbols():
            return self
        return dataclasses.replace(self, **{name: bind(value, env) for name, value in self.attributes().items()})

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.attributes().items())
        return f"{type(self).__name__}({shown})" if shown else type(self).__name__
