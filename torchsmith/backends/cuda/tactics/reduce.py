"""Reductions over any dimensions through `kernels/reduce.py`, with what comes before and after them.

Long reductions of few rows run in two kernels: runs of columns into scratch memory, then these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.reduce import reduce
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.parts import parts_of
from torchsmith.backends.cuda.tactics.rows import HOOK, MASKS, USUAL_ROWS, RowHooks, Rows, blocks_of, number, rows_of, up
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value

USUAL_COLS = 1024  # what guesses take an unknown number for


@dataclass(frozen=True)
class ReduceConfig:
    """splits: runs of columns, each a block's; their results are put together by a second kernel where there are several."""

    block_r: int
    block_c: int
    num_warps: int
    splits: int = 1


@dataclass(frozen=True)
class Function:
    """How a reduction is computed: see the kernel's PREPARE, COMBINE and FINISH."""

    prepare: str
    combine: str
    finish: str


FUNCTIONS = {
    "sum": Function("", "sum", ""),
    "mean": Function("", "sum", "mean"),
    "max": Function("", "max", ""),
    "min": Function("", "min", ""),
    "any": Function("", "max", ""),
    "all": Function("", "min", ""),
    "prod": Function("", "prod", ""),
    "l1": Function("abs", "sum", ""),
    "l2": Function("square", "sum", "sqrt"),
}
REGISTERS = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), "fp32"),
    **dict.fromkeys((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32), "i32"),
    torch.int64: "i64",
}


class ReduceTemplate:
    name = "reduce"
    kinds = frozenset({"reduce", "Reduce"})
    config_type = ReduceConfig

    def configs(self, e: Emission) -> Sequence[ReduceConfig]:
        p = problem_of(e)
        found = shapes_of(e, p)
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: ReduceConfig) -> None:
        p = problem_of(e)
        hooks = RowHooks(e, p)
        load, output = hooks.load(), hooks.output()
        if hooks.extra() is not None:
            raise Unsupported("what a reduction takes is an output too")
        op, dtype = p.parts.main.op, p.x.type.dtype
        f, register = FUNCTIONS[op.function], REGISTERS[dtype]  # type: ignore[attr-defined]
        common = dict(COMBINE=f.combine, IDENTITY=identity(f.combine, register), REGISTER=register, PDL=True, COUNT=p.cols)
        last = dict(y=output, FINISH=f.finish)
        if config.splits == 1:
            blocks = blocks_of(p.cols, config.block_c)
            split = blocks if isinstance(blocks, int) else (2**31 - 1) // config.block_c
            shape = dict(BLOCK_R=config.block_r, BLOCK_C=config.block_c, SPLIT=split)
            given = dict(LOAD=load, PREPARE=f.prepare, ROWS=p.rows, COLS=p.cols, **epilogue_of(hooks))
            self._launch(e, hooks.main, p.rows, config, {**given, **shape, **last, **common}, 1, output)
            return
        assert isinstance(p.cols, int), config
        steps = -(-p.cols // config.block_c)
        split = -(-steps // config.splits)
        runs = -(-p.cols // (split * config.block_c))
        wide = {"fp32": torch.float32, "i32": torch.int32, "i64": torch.int64}[register]
        partial = e.temporary((runs, p.rows), wide, "partial")
        shape = dict(BLOCK_R=config.block_r, BLOCK_C=config.block_c, SPLIT=split)
        given = dict(LOAD=load, PREPARE=f.prepare, ROWS=p.rows, COLS=p.cols, EPILOGUE=None, PLACE=None)
        first = dict(y=partial, FINISH="")
        self._launch(e, hooks.main, p.rows, config, {**given, **shape, **first, **common}, runs, partial)
        again = RowHooks(e, p)
        writer = again.writer()
        name = writer.load(partial, Space(partial.type.shape, (("cols", (0,)), ("rows", (1,))), MASKS))
        load = writer.hook("load", HOOK, [name, "0"])
        width, height = min(up(runs), 64), max(1, min(32, up(number(p.rows))))
        shape = dict(BLOCK_R=height, BLOCK_C=width, SPLIT=-(-runs // width))
        given = dict(LOAD=load, PREPARE="", ROWS=p.rows, COLS=runs, **epilogue_of(again))
        small = ReduceConfig(height, width, 4 if height * width >= 512 else 1)
        self._launch(e, again.main, p.rows, small, {**given, **shape, **last, **common}, 1, output)

    def _launch(
        self, e: Emission, writer: HookWriter, rows: Dim, config: ReduceConfig, arguments: dict[str, object], runs: int, out: Value
    ) -> None:
        grid = (blocks_of(rows, config.block_r), runs)
        e.launch(reduce, grid, {**arguments, **writer.arguments()}, writes=[out], num_warps=config.num_warps, num_stages=3)


def problem_of(e: Emission) -> Rows:
    parts = parts_of(e.node, "Reduce")
    op, x = parts.main.op, parts.main.inputs[0]
    if x.type.dtype not in REGISTERS:
        raise Unsupported(f"{op} of {x.type.dtype}")
    if not op.dims:  # type: ignore[attr-defined]
        raise Unsupported("a reduction of a number")
    return rows_of(e, parts, op.dims)  # type: ignore[attr-defined]


def shapes_of(e: Emission, p: Rows) -> list[ReduceConfig]:
    """Tiles of some 2,048 elements, the longer side along what lies together in memory; more blocks where there are few rows."""
    rows, cols = e.likely(p.rows, USUAL_ROWS), e.likely(p.cols, USUAL_COLS)
    # across rows, eight of them are one 16-byte load of half precision
    across = ((8, 256, 4), (16, 128, 4), (16, 256, 8), (32, 64, 8), (64, 32, 8), (128, 16, 8))
    along = ((1, 1024, 4), (4, 256, 4), (16, 64, 4), (1, 2048, 8), (4, 512, 8), (32, 32, 4))
    tiles = across if p.across else along
    found: list[ReduceConfig] = []
    for r, c, warps in tiles:
        r, c = min(r, up(rows)), min(c, up(cols))
        blocks, steps = -(-rows // r), -(-cols // c)
        splits = max(1, min(steps // 4, 264 // blocks)) if isinstance(p.cols, int) else 1
        found.append(ReduceConfig(r, c, max(1, min(warps, r * c // 64)), 1))
        if splits > 1:
            found.append(ReduceConfig(r, c, max(1, min(warps, r * c // 64)), splits))
    return sorted(dict.fromkeys(found), key=lambda c: _cost(rows, cols, c))


def _cost(rows: int, cols: int, c: ReduceConfig) -> float:
    """Tile loads one after another in the busiest processor, about; a second kernel costs as much as a few."""
    blocks, steps = -(-rows // c.block_r), -(-cols // c.block_c)
    waves = -(-blocks * c.splits // (132 * max(1, 16 // c.num_warps)))
    return waves * -(-steps // c.splits) * (1 + c.block_r * c.block_c / 2048) + (4 if c.splits > 1 else 0)


def epilogue_of(hooks: RowHooks) -> dict[str, Hook]:
    """Hooks over the result's shape: (acc, rows, mask) to the output, and rows to its offset."""
    p = hooks.p
    main = p.parts.main.outputs[0]
    keepdim = p.parts.main.op.keepdim  # type: ignore[attr-defined]
    kept = p.kept if keepdim else tuple(sum(other < d for other in p.kept) for d in p.kept)
    space = Space(main.type.shape, (("rows", kept),) if kept else ())
    writer = hooks.writer()
    writer.names[main] = _as_register(main.type.dtype)
    writer.compute(p.parts.after, space)
    epilogue = writer.hook("epilogue", ("acc", "rows", "mask"), [writer.names[hooks.output()]])
    place = hooks.writer()
    text = place.offset(hooks.output(), space)
    return {"EPILOGUE": epilogue, "PLACE": place.hook("place", ("rows",), [text])}


def _as_register(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "(acc != 0)"
    names = {torch.uint8: "uint8", torch.int8: "int8", torch.int16: "int16"}
    return f"acc.to(tl.{names[dtype]})" if dtype in names else "acc"


def identity(combine: str, register: str) -> float | int:
    if combine in ("sum", "prod"):
        number = 0 if combine == "sum" else 1
        return float(number) if register == "fp32" else number
    if register == "fp32":
        return float("-inf") if combine == "max" else float("inf")
    limits = torch.iinfo(torch.int32 if register == "i32" else torch.int64)
    return limits.min if combine == "max" else limits.max


TEMPLATE = ReduceTemplate()
