"""A layer norm and the linear layer after it through `kernels/gemm_norm.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import flattened
from torchsmith.backends.cuda.kernels.gemm_norm import gemm_norm
from torchsmith.backends.cuda.program import HookWriter
from torchsmith.backends.cuda.tactics.gemm import ceildiv, even, halves, lines_ahead
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig, gemm_configs
from torchsmith.backends.cuda.tactics.gemm_problem import Problem, epilogue_of, problem_of
from torchsmith.backends.cuda.tactics.parts import Parts
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Node, Value

MOST_ROWS = 2048  # with more, a norm of its own costs less than sums in every block


@dataclass(frozen=True)
class Normed:
    """product: the linear layer, of what is normalised, with no bias. The rest is float32, or as the weight."""

    product: Problem
    scaled: Value
    sums: Value
    bias: Value
    eps: float


class GemmNormTemplate:
    name = "gemm_norm"
    kinds = frozenset({"norm_gemm"})
    config_type = GemmConfig

    def configs(self, e: Emission) -> Sequence[GemmConfig]:
        found = normed_of(e)
        p = found.product
        epilogue_of(e, p, HookWriter(e.views, e.constant), 16, 16)  # whether the hook can be written
        if not isinstance(p.m, int) or p.m > MOST_ROWS:
            raise Unsupported(f"a norm of {p.m} rows; up to {MOST_ROWS} are normalised as they are multiplied")
        whole = gemm_configs(p.m, p.n, p.k, 1, p.a.type.dtype.itemsize, True, True, chained=False)
        usable = [c for c in whole if c.split_k == 1 and not c.programs and p.k % c.block_k == 0]
        if not usable:
            raise Unsupported(f"a norm over {p.k} features, which no block divides")
        return usable

    def emit(self, e: Emission, config: GemmConfig) -> None:
        found, c = normed_of(e), config
        p = found.product
        writer = HookWriter(e.views, e.constant)
        epilogue = epilogue_of(e, p, writer, c.block_m, c.block_n)
        _, c_row, c_col = p.c_strides
        e.launch(
            gemm_norm,
            (ceildiv(p.m, c.block_m) * -(-p.n // c.block_n),),
            {
                **dict(a=p.a, b=found.scaled, sums=found.sums, bias=found.bias, c=p.output, M=p.m, N=p.n, K=p.k),
                **dict(a_row=p.a_rows.stride, b_row=p.k, c_row=c_row, c_col=c_col, EPS=found.eps, EPILOGUE=epilogue),
                **dict(BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, GROUP_M=c.group_m, PDL=True),
                **dict(EVEN_M=even(p.m, c.block_m), EVEN_N=even(p.n, c.block_n), HALVES=halves(c), AHEAD=lines_ahead(p, c, p.k)),
                **writer.arguments(),
            },
            writes=[p.output],
            num_warps=c.num_warps,
            num_stages=c.num_stages,
        )


def normed_of(e: Emission) -> Normed:
    """The node's parts. Raises Unsupported where rows are not in one piece, or for what is not half precision."""
    nodes = flattened([e.node])
    norm = next(n for n in nodes if type(n.op).__name__ == "LayerNorm")
    linear = next(n for n in nodes if type(n.op).__name__ == "Linear")
    after = tuple(n for n in nodes if n is not norm and n is not linear)
    x, gamma, beta = norm.inputs
    weight, *rest = linear.inputs[1:]
    plain = Node(linear.op, (x, weight), linear.outputs, linear.origin)
    product = problem_of(e, Parts(plain, (), after, e.node.outputs))
    if x.type.dtype not in (torch.float16, torch.bfloat16):
        raise Unsupported(f"a norm of {x.type.dtype} in a product; it takes half precision")
    if product.a_rows.inner is not None or product.a_col != 1:
        raise Unsupported("rows that do not follow each other")
    given = [e.constant(v) for v in (gamma, beta, *rest)]
    assert given[0] is not None and given[1] is not None
    scale, shift, bias = given[0].float(), given[1].float(), given[2].float() if rest and given[2] is not None else None

    def scaled(w: Tensor) -> Tensor:
        return (w.float() * scale).to(w.dtype)

    def level(w: Tensor) -> Tensor:
        moved = (w.double() @ shift.double()).float()
        return moved if bias is None else moved + bias

    names = " ".join(v.name for v in (gamma, beta, *rest))
    return Normed(
        replace(product, constant=True),
        e.packed(weight, f"scaled by {gamma.name}", scaled),
        e.packed(weight, f"sums scaled by {gamma.name}", lambda w: scaled(w).double().sum(1).float()),
        e.packed(weight, f"level by {names}", level),
        float(norm.op.eps),  # type: ignore[attr-defined]
    )


TEMPLATE = GemmNormTemplate()
