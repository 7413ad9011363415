"""Layer, RMS and group norms through `kernels/norm.py`, with what comes before and after them."""

from __future__ import annotations

from collections.abc import Sequence

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.norm import norm, norm_long
from torchsmith.backends.cuda.program import Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.parts import parts_of
from torchsmith.backends.cuda.tactics.rows import (
    HOOK,
    MASKS,
    RowConfig,
    RowHooks,
    Rows,
    blocks_of,
    check_floats,
    row_configs,
    rows_of,
)

WIDEST = 16384  # of a row that is held in registers; twice as many spill beside a sum and weights


class NormTemplate:
    name = "norm"
    kinds = frozenset({"norm", "LayerNorm", "RmsNorm", "GroupNorm"})
    config_type = RowConfig

    def configs(self, e: Emission) -> Sequence[RowConfig]:
        found = row_configs(e, problem_of(e), 1024, WIDEST)
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: RowConfig) -> None:
        p = problem_of(e)
        emit_norm(e, p, RowHooks(e, p, most=2), config)


def emit_norm(e: Emission, p: Rows, hooks: RowHooks, config: RowConfig) -> None:
    """Add the kernel."""
    load, extra, output, also = hooks.load(), hooks.extra(), hooks.output(), hooks.also()
    affine = affine_hook(hooks)
    parameters = p.parts.main.inputs[1:]
    arguments = {
        **dict(y=output, also=also, extra=extra, ROWS=p.rows, COLS=p.cols),
        **dict(LOAD=load, AFFINE=affine, EPILOGUE=hooks.epilogue(two=True), PLACE=hooks.place(output)),
        **dict(EARLY=all(e.constant(v) is not None for v in parameters)),
        **dict(PLACE_ALSO=hooks.place(also) if also else None),
        **dict(PLACE_EXTRA=hooks.place(extra) if extra else None),
        **dict(EPS=float(p.parts.main.op.eps), CENTRED=type(p.parts.main.op).__name__ != "RmsNorm"),  # type: ignore[attr-defined]
        **dict(BLOCK_R=config.block_r, BLOCK_C=config.block_c, PDL=True),
    }
    e.launch(
        norm_long if config.loop else norm,
        (blocks_of(p.rows, config.block_r),),
        {**arguments, **hooks.main.arguments()},
        writes=[v for v in (output, also, extra) if v is not None],
        num_warps=config.num_warps,
        num_stages=3 if config.loop else 1,
    )


def problem_of(e: Emission) -> Rows:
    parts = parts_of(e.node, "LayerNorm", "RmsNorm", "GroupNorm")
    op, x = parts.main.op, parts.main.inputs[0]
    check_floats([x])
    if type(op).__name__ == "GroupNorm":
        return rows_of(e, parts, range(1, x.type.rank), op.groups)  # type: ignore[attr-defined]
    return rows_of(e, parts, range(x.type.rank - op.dims, x.type.rank))  # type: ignore[attr-defined]


def affine_hook(hooks: RowHooks) -> Hook | None:
    """(rows, cols, ...) to the weight and the bias."""
    p = hooks.p
    parameters = p.parts.main.inputs[1:]
    if not parameters:
        return None
    writer = hooks.writer()
    shape = parameters[0].type.shape
    rank = p.x.type.rank
    dims = tuple(d - rank + len(shape) for d in p.reduced)
    space = Space(shape, (("c", (0,)),)) if p.groups else Space(shape, (("cols", dims),), MASKS)
    names = [writer.load(v, space) for v in parameters]
    return writer.hook("affine", HOOK, [*names, "0.0"][:2])


TEMPLATE = NormTemplate()
