"""The second stage: the same function in fewer and simpler ops."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch.export import ExportedProgram

from torchsmith import debug
from torchsmith.capture import Captured
from torchsmith.config import LowerConfig
from torchsmith.lower.dead_code import dead_code
from torchsmith.lower.decompose import decompose
from torchsmith.lower.editing import Lowering, copied
from torchsmith.lower.fold_batch_norm import fold_batch_norm
from torchsmith.lower.fold_constants import fold_constants
from torchsmith.lower.functionalize import functionalize
from torchsmith.lower.inline_regions import inline_regions
from torchsmith.lower.remove_noops import remove_noops
from torchsmith.lower.whole_fake_quantize import whole_fake_quantize

PASSES: tuple[Callable[[ExportedProgram, Lowering], ExportedProgram], ...] = (
    inline_regions,  # first, so that the others see every op
    functionalize,
    whole_fake_quantize,
    remove_noops,
    fold_constants,  # before fold_batch_norm, whose scales may be reshaped parameters
    fold_batch_norm,  # before decompose, which would take normalisations apart
    decompose,
    remove_noops,  # decompositions are full of them
    fold_constants,
    dead_code,
)


@dataclass(frozen=True)
class Lowered:
    """A functional program with the captured one's signature and results, ready to be cut into segments."""

    program: ExportedProgram


def lower(captured: Captured, config: LowerConfig | None = None, keep: Collection[str] = ()) -> Lowered:
    """Rewrite a captured program for inference, without changing what it computes.

    The captured program stays as it is; weights that nothing was folded into are shared with it. keep: names of ops that
    the user keeps in PyTorch, which are therefore neither taken apart nor folded.
    """
    how = Lowering(config or LowerConfig(), frozenset(keep))
    program = copied(captured.program)
    watch = debug.watch("lower", program)
    for apply in PASSES:
        program = apply(program, how)
        watch(apply.__name__, program)
    program.graph_module.recompile()
    return Lowered(program)
