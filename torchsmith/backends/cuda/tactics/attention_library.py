"""Attention through PyTorch's own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.tactics.parts import parts_of
from torchsmith.backends.cuda.tactics.rows import check_floats
from torchsmith.errors import Unsupported


@dataclass(frozen=True)
class LibraryConfig:
    """There is no choice."""


class AttentionLibraryTemplate:
    name = "attention_library"
    kinds = frozenset({"attention", "Attention"})
    config_type = LibraryConfig

    def configs(self, e: Emission) -> Sequence[LibraryConfig]:
        parts = parts_of(e.node, "Attention")
        check_floats(parts.main.inputs[:1])
        if parts.main.op.probabilities is not None:  # type: ignore[attr-defined]
            raise Unsupported("PyTorch's attention rounds no probabilities")
        if parts.before or parts.after:
            raise Unsupported("PyTorch's attention has no epilogue")
        return [LibraryConfig()]

    def emit(self, e: Emission, config: LibraryConfig) -> None:
        main = parts_of(e.node, "Attention").main
        e.call(main.op, e.node.inputs, e.node.outputs)


TEMPLATE = AttentionLibraryTemplate()
