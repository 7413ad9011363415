"""Softmax and its logarithm through `kernels/softmax.py`, with what comes before and after them."""

from __future__ import annotations

from collections.abc import Sequence

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.softmax import softmax, softmax_long
from torchsmith.backends.cuda.tactics.parts import parts_of
from torchsmith.backends.cuda.tactics.rows import RowConfig, RowHooks, Rows, blocks_of, check_floats, row_configs, rows_of
from torchsmith.errors import Unsupported

WIDEST = 32768  # of a row that is held in registers


class SoftmaxTemplate:
    name = "softmax"
    kinds = frozenset({"softmax", "Softmax", "LogSoftmax"})
    config_type = RowConfig

    def configs(self, e: Emission) -> Sequence[RowConfig]:
        found = row_configs(e, problem_of(e), 1024, WIDEST)
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: RowConfig) -> None:
        p = problem_of(e)
        hooks = RowHooks(e, p)
        load, output = hooks.load(), hooks.output()
        if hooks.extra() is not None:
            raise Unsupported("what a softmax takes is an output too")
        e.launch(
            softmax_long if config.loop else softmax,
            (blocks_of(p.rows, config.block_r),),
            {
                **dict(y=output, ROWS=p.rows, COLS=p.cols, LOAD=load, EPILOGUE=hooks.epilogue(), PLACE=hooks.place(output)),
                **dict(LOG=type(p.parts.main.op).__name__ == "LogSoftmax"),
                **dict(BLOCK_R=config.block_r, BLOCK_C=config.block_c, PDL=True),
                **hooks.main.arguments(),
            },
            writes=[output],
            num_warps=config.num_warps,
            num_stages=3 if config.loop else 1,
        )


def problem_of(e: Emission) -> Rows:
    parts = parts_of(e.node, "Softmax", "LogSoftmax")
    check_floats(parts.main.inputs[:1])
    return rows_of(e, parts, [parts.main.op.dim])  # type: ignore[attr-defined]


TEMPLATE = SoftmaxTemplate()
