"""Tactics: the ways to run a node. The order is that of a build which does not time them: the first that accepts is taken."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.roofline import flops_of
from torchsmith.errors import Unsupported

# Modules here whose TEMPLATE keeps the protocol, library ones after ours.
ORDER: tuple[str, ...] = (
    "gemv", "gemm", "gemm_int8", "gemm_float8", "gemm_norm", "depthwise", "depthwise_gate", "squeeze_excite", "convolution",
    "stem_taps", "stem", "norm", "softmax", "reduce", "attention", "attention_float8", "attention_library", "pool", "concat",
    "pointwise", "movement", "cudnn", "cublas", "cublas_float8", "sparse", "sparse_int8",
)  # fmt: skip
SPARSE = frozenset({"sparse", "sparse_int8"})  # those for 2:4 weights
# From here on cuDNN's convolutions are guessed first, where what follows is in their kernels: by the tuner's timings on an H200
# ours are behind where there is much to multiply, and far ahead where there is little.
LIBRARY_FLOPS = 8_000_000_000


class Template(Protocol):
    """One way to run some kinds of nodes, with a choice of configurations."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> frozenset[str]:
        """Classes of ops, and kinds of fused nodes, that it may take."""

    def configs(self, e: Emission) -> Sequence[Any]:
        """Frozen dataclasses of numbers and text, the best guess first. Raises Unsupported where the node cannot be taken."""

    def emit(self, e: Emission, config: Any) -> None:
        """Add the node's steps."""


@dataclass(frozen=True)
class Tactic:
    """A choice that can be written down and taken again. config: one of the template's."""

    template: str
    config: Any

    def to_json(self) -> dict[str, Any]:
        return {"template": self.template, "config": dataclasses.asdict(self.config)}

    def __str__(self) -> str:
        shown = " ".join(f"{f.name}={getattr(self.config, f.name)}" for f in dataclasses.fields(self.config))
        return f"{self.template} {shown}".strip()


def template(name: str) -> Template:
    found: Template = importlib.import_module(f"torchsmith.backends.cuda.tactics.{name}").TEMPLATE
    return found


def tactics_of(e: Emission, limit: int = 1000) -> tuple[list[Tactic], list[str]]:
    """The node's tactics, best guesses first, at most `limit` of each template; and why other templates do not take it."""
    kind = kind_of(e)
    found, refusals = list[Tactic](), list[str]()
    for name in ORDER:
        candidate = template(name)
        if kind not in candidate.kinds:
            continue
        try:
            found += [Tactic(name, config) for config in candidate.configs(e)[:limit]]
        except Unsupported as why:
            refusals.append(f"{name}: {why}")
    if kind == "convolution" and e.likely(flops_of(e.node), 0) >= LIBRARY_FLOPS:
        found.sort(key=lambda t: (t.template, getattr(t.config, "variant", "")) != ("cudnn", "fused"))
    return found, refusals


@contextlib.contextmanager
def only_dense() -> Iterator[None]:
    """No tactics for 2:4 weights in what is built while the block runs, in the whole process."""
    global ORDER
    before = ORDER
    ORDER = tuple(name for name in before if name not in SPARSE)
    try:
        yield
    finally:
        ORDER = before


def kind_of(e: Emission) -> str:
    return getattr(e.node.op, "kind", type(e.node.op).__name__)


def from_json(data: dict[str, Any]) -> Tactic:
    """Read back what `Tactic.to_json` wrote. Raises KeyError, TypeError or ModuleNotFoundError for what another version wrote."""
    if data["template"] not in ORDER:
        raise KeyError(data["template"])
    return Tactic(data["template"], template(data["template"]).config_type(**data["config"]))  # type: ignore[attr-defined]
