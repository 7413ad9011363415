"""What an engine does, step by step: launch a kernel, or call an op.

These are the steps as the builder holds them, over `Value`s and symbolic sizes; `plan.py` writes them as data.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from dataclasses import dataclass
from typing import Any

from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op


@dataclass(frozen=True)
class Hook:
    """A generated Triton function that a kernel template calls: an epilogue, a prologue, a pointwise body.

    source: Python text of one function called `name`, over `tl`, `kernels/common.py` and `kernels/functions.py`.
    """

    name: str
    source: str

    def function(self) -> Any:
        """The Triton function. The same source gives the same object."""
        return _function(self.name, self.source)


@functools.cache
def _function(name: str, source: str) -> Any:
    import triton

    from torchsmith.backends.cuda.kernels import common, functions

    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<torchsmith hook {name} {digest}>"  # Triton reads a function's text back through linecache
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {k: v for k, v in {**vars(common), **vars(functions)}.items() if not k.startswith("__")}
    scope["__name__"] = f"torchsmith_hook_{digest}"
    exec(compile(source, filename, "exec"), scope)  # our own generator's text
    return triton.jit(scope[name])


# What a kernel's constant may be: numbers, text, None, dtypes as text ("fp16"), generated functions.
Constant = "int | float | bool | str | None | Hook"


@dataclass(frozen=True)
class Kernel:
    """One Triton function, specialised: all that compiling it takes, and nothing of the values it runs on.

    module, function: where the `@triton.jit` function is. types: of its run-time arguments, in order, as Triton writes them
    ("*fp16", "i32", "fp32"). aligned: those that are multiples of 16. constants: the other parameters.
    """

    module: str
    function: str
    types: tuple[tuple[str, str], ...]
    aligned: frozenset[str]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int = 4
    num_stages: int = 2

    def key(self) -> str:
        """A name for the kernel that is the same in every process."""
        text = repr((self.module, self.function, self.types, sorted(self.aligned), self.constants, self.num_warps, self.num_stages))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Launch:
    """Run a kernel. grid: three sizes. arguments: one for each of the kernel's types. writes: values among the arguments."""

    kernel: Kernel
    grid: tuple[Dim, Dim, Dim]
    arguments: tuple[Value | Dim | float, ...]
    writes: tuple[Value, ...]
    origin: str = ""

    @property
    def touched(self) -> tuple[Value, ...]:
        return tuple(a for a in self.arguments if isinstance(a, Value))


@dataclass(frozen=True, eq=False)
class Call:
    """Run an op's reference in PyTorch: a library's kernel (see `library.py`), or what has no kernel of ours.

    tf32: whether float32 operands may be rounded to it; None where that is no question.
    """

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origin: str = ""
    tf32: bool | None = None

    @property
    def touched(self) -> tuple[Value, ...]:
        return (*self.inputs, *self.outputs)


Step = Launch | Call
