"""Linear layers, 1×1 convolutions and matrix products through `kernels/gemm.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.gemm import gemm
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, Shape, floordiv, product, same
from torchsmith.ir.graph import Value


@dataclass(frozen=True)
class GemmConfig:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8


@dataclass(frozen=True)
class Problem:
    """The product as a batch of (M, K) by (N, K): strides are (batch, row, column) of A, of B as (N, K), and of C.

    row_dims, col_dim, batch_dims: the dimensions of the main op's output that rows, columns and the batch count.
    """

    parts: Parts
    a: Value
    b: Value
    bias: Value | None
    m: Dim
    n: Dim
    k: Dim
    batch: Dim
    a_strides: tuple[Dim, Dim, Dim]
    b_strides: tuple[Dim, Dim, Dim]
    c_strides: tuple[Dim, Dim, Dim]
    row_dims: tuple[int, ...]
    col_dim: int
    batch_dims: tuple[int, ...]


class GemmTemplate:
    name = "gemm"
    kinds = frozenset({"gemm", "Linear", "MatMul", "Convolution"})
    config_type = GemmConfig

    def configs(self, e: Emission) -> Sequence[GemmConfig]:
        p = problem_of(e)
        self.emit(Emission(e.node, e.views, e._packed), GemmConfig(64, 64, 32, 4, 2))  # whether the hooks can be written
        m = p.m if isinstance(p.m, int) else 1 << 14
        n, k = int(p.n), int(p.k)
        found = [
            GemmConfig(bm, bn, bk, warps, stages)
            for bm, bn, bk, warps, stages in (
                (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 64, 64, 4, 4), (64, 32, 64, 4, 4), (32, 32, 64, 4, 5),
                (16, 32, 128, 4, 4), (64, 128, 64, 4, 3), (128, 64, 64, 4, 3), (16, 64, 64, 4, 4),
            )
            if bm <= max(16, _up(m)) and bn <= max(16, _up(n)) and bk <= max(16, _up(k))
        ] or [GemmConfig(16, max(16, min(64, _up(n))), max(16, min(64, _up(k))), 4, 3)]  # fmt: skip
        blocks = lambda c: -(-m // c.block_m) * -(-n // c.block_n)  # noqa: E731
        return sorted(found, key=lambda c: (-(-blocks(c) // 132)) * c.block_m * c.block_n)

    def emit(self, e: Emission, config: GemmConfig) -> None:
        p = problem_of(e)
        (output,) = p.parts.outputs
        # the logical output with its dimensions as rows, columns and batch
        main = p.parts.main.outputs[0]
        indices = [("batch", p.batch_dims), ("rows", p.row_dims), ("cols", (p.col_dim,))]
        space = Space(main.type.shape, tuple((t, d) for t, d in indices if d))
        writer = HookWriter(e.views, e.constant)
        writer.names[main] = "acc"
        if p.bias is not None:
            bias_space = Space((main.type.shape[p.col_dim],), (("cols", (0,)),))
            writer.lines.append(f"acc = acc + {writer.load(p.bias, bias_space)}")
        writer.compute(p.parts.after, space)
        epilogue = writer.hook("epilogue", ("acc", "batch", "rows", "cols", "mask"), [writer.names[output]])
        prologue = None
        if p.parts.before:
            before = HookWriter(e.views, e.constant, writer.operands, writer.sizes)
            before.names[p.a] = "x"
            a_shape = p.parts.main.inputs[0].type.shape
            a_col = 1 if p.row_dims and type(p.parts.main.op).__name__ == "Convolution" else len(a_shape) - 1
            indices = [("batch", p.batch_dims), ("rows", p.row_dims), ("ks", (a_col,))]
            before.compute(p.parts.before, Space(a_shape, tuple((t, d) for t, d in indices if d)))
            last = before.names[p.parts.main.inputs[0]]
            prologue = before.hook("prologue", ("x", "batch", "rows", "ks", "mask"), [last])
        blocks = -(-p.m // config.block_m) if isinstance(p.m, int) else floordiv(p.m + config.block_m - 1, config.block_m)
        e.launch(
            gemm,
            (blocks * -(-int(p.n) // config.block_n), p.batch),
            {
                **dict(a=p.a, b=p.b, c=output, M=p.m, N=p.n, K=p.k),
                **dict(zip(("a_batch", "a_row", "a_col"), p.a_strides, strict=True)),
                **dict(zip(("b_batch", "b_row", "b_col"), p.b_strides, strict=True)),
                **dict(zip(("c_batch", "c_row", "c_col"), p.c_strides, strict=True)),
                **writer.arguments(),
                **dict(PROLOGUE=prologue, EPILOGUE=epilogue, PRECISION="ieee", PDL=True),
                **dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=config.group_m),
            },
            writes=[output],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def problem_of(e: Emission) -> Problem:
    """The node as a matrix product. Raises Unsupported where it is none, or where its operands' strides do not allow it."""
    parts = parts_of(e.node, "Linear", "MatMul", "Convolution")
    main, output = parts.main, parts.outputs[0]
    op, kind = main.op, type(main.op).__name__
    if len(parts.outputs) > 1:
        raise Unsupported("the node has several outputs")
    x, w = main.inputs[:2]
    if x.type.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise Unsupported(f"a product of {x.type.dtype}")
    a = _source(parts, x)
    bias = main.inputs[2] if len(main.inputs) > 2 else None
    shape = main.outputs[0].type.shape
    if kind == "Convolution":
        pointwise = set(op.stride) == {1} and op.groups == 1 and set(w.type.shape[2:]) == {1} and not any(map(any, op.padding))  # type: ignore[attr-defined]
        if not pointwise:
            raise Unsupported("the convolution is not 1×1 with stride 1, no padding and one group")
        row_dims, col_dim, batch_dims, a_col = (0, *range(2, len(shape))), 1, (), 1
        b = e.packed(w, "matrix", lambda t: t.flatten(1))
    elif kind == "Linear":
        row_dims, col_dim, batch_dims, a_col, b = tuple(range(len(shape) - 1)), len(shape) - 1, (), len(shape) - 1, w
    else:
        batch_dims, row_dims, col_dim, a_col, b = tuple(range(len(shape) - 2)), (len(shape) - 2,), len(shape) - 1, len(shape) - 1, w
    a_rows = row_dims if kind != "MatMul" else (x.type.rank - 2,)
    rows = [x.type.shape[d] for d in a_rows]
    a_view, c_view = e.view(a), e.view(output)
    if a.type.shape != x.type.shape:
        raise Unsupported(f"what comes before the product broadcasts {a.type}")
    m, n, k = product(rows), shape[col_dim], x.type.shape[a_col if kind != "MatMul" else x.type.rank - 1]
    if not isinstance(n, int) or not isinstance(k, int):
        raise Unsupported(f"a product with {n} columns over {k}; both must be known")
    batch = product([shape[d] for d in batch_dims])
    a_dims = a_view.strides
    a_strides = (
        _one(x.type.shape[:-2], a_dims[:-2], shape[:-2]) if kind == "MatMul" else 0,
        _one(rows, [a_dims[d] for d in a_rows]),
        a_dims[a_col if kind != "MatMul" else -1],
    )
    if kind == "MatMul":
        b_dims = e.view(b).strides
        b_strides = (_one(b.type.shape[:-2], b_dims[:-2], shape[:-2]), b_dims[-1], b_dims[-2])
    else:
        b_dims = e.view(b).strides
        b_strides = (0, b_dims[0], b_dims[1])
    c_dims = c_view.strides
    c_strides = (
        _one([shape[d] for d in batch_dims], [c_dims[d] for d in batch_dims]),
        _one([shape[d] for d in row_dims], [c_dims[d] for d in row_dims]),
        c_dims[col_dim],
    )
    return Problem(parts, a, b, bias, m, n, k, batch, a_strides, b_strides, c_strides, row_dims, col_dim, batch_dims)


def _source(parts: Parts, x: Value) -> Value:
    """The tensor that the kernel loads as A: what the nodes before the product start from."""
    if not parts.before:
        return x
    if parts.before[-1].outputs[0] is not x:
        raise Unsupported("what comes before the product does not end at its first operand")
    current = x
    producers = {v: n for n in parts.before for v in n.outputs}
    while current in producers:
        wide = [v for v in producers[current].inputs if v.type.shape == x.type.shape]
        if not wide:
            raise Unsupported("what comes before the product has no operand of its shape")
        current = wide[0]
    return current


def _one(sizes: Sequence[Dim], strides: Sequence[Dim], wanted: Shape | None = None) -> Dim:
    """One stride that counts all the dimensions row-major. Raises Unsupported where there is none."""
    if wanted is not None and (len(sizes) != len(wanted) or not all(map(same, sizes, wanted))):
        if all(same(s, 1) for s in sizes):
            return 0
        raise Unsupported(f"a batch of {tuple(sizes)} broadcast to {wanted}")
    result: Dim | None = None
    step: Dim = 0
    for size, stride in reversed(list(zip(sizes, strides, strict=True))):
        if same(size, 1):
            continue
        if result is None:
            result, step = stride, stride * size
        elif not same(stride, step):
            raise Unsupported(f"strides {tuple(strides)} of sizes {tuple(sizes)} are not those of one dimension")
        else:
            step = stride * size
    return 0 if result is None else result


def _up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


TEMPLATE = GemmTemplate()
