"""A linear layer and the norm of its result in two kernels: products of parts of K, and their sums, normed row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import Fused, flattened
from torchsmith.backends.cuda.layout import View, contiguous
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.tactics.gemm import emit_parts
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig, split_configs
from torchsmith.backends.cuda.tactics.gemm_problem import Problem, problem_of
from torchsmith.backends.cuda.tactics.norm import emit_norm
from torchsmith.backends.cuda.tactics.parts import Parts
from torchsmith.backends.cuda.tactics.rows import RowConfig, RowHooks, check_floats, rows_of, up
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value

MOST = 10


@dataclass(frozen=True)
class GemmNormConfig:
    """The fields of a `GemmConfig` that divides K; norm_warps: of a block that adds up and norms one row."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int
    ahead: bool
    chains: int
    norm_warps: int

    def product(self) -> GemmConfig:
        return GemmConfig(**{f.name: getattr(self, f.name) for f in fields(self) if f.name != "norm_warps"})


class GemmNormTemplate:
    name = "gemm_norm"
    kinds = frozenset({"gemm_norm"})
    config_type = GemmNormConfig

    def configs(self, e: Emission) -> Sequence[GemmNormConfig]:
        product, _ = split(e)
        p = problem_of(e, product)
        assert isinstance(p.m, int), e.node
        found = []
        whole = p.b.type.dtype.itemsize
        rounded = whole == 1  # twice as much of K as of half precision
        configs = split_configs(p.m, p.n, -(-p.k // 2) if rounded else p.k, 2 if rounded else whole, p.constant)
        for rank, c in enumerate(replace(c, block_k=2 * c.block_k) if rounded else c for c in configs):
            for norm_warps in (4, 8) if rank < 3 else (4,):
                shared = {f.name: getattr(c, f.name) for f in fields(GemmNormConfig) if f.name != "norm_warps"}
                found.append(GemmNormConfig(**shared, norm_warps=norm_warps))
        if not found:
            raise Unsupported(f"a product over {p.k}, which is too few to divide")
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found[:MOST]

    def emit(self, e: Emission, config: GemmNormConfig) -> None:
        product, normed = split(e)
        p = problem_of(e, product)
        parts = emit_parts(e, p, config.product())
        rows = rows_of(e, normed, (normed.main.inputs[0].type.rank - 1,))
        hooks = RowHooks(e, rows, lambda writer, space: add_parts(e, writer, space, p, parts), most=2)
        emit_norm(e, rows, hooks, RowConfig(1, up(p.n), config.norm_warps))


def split(e: Emission) -> tuple[Parts, Parts]:
    """The product with nothing after it, and the norm with what follows the product before it."""
    assert isinstance(e.node.op, Fused), e.node
    nodes = flattened([e.node])
    linear, end = nodes[0], next(i for i, n in enumerate(nodes) if type(n.op).__name__ in ("LayerNorm", "RmsNorm"))
    main = nodes[end]
    check_floats([main.inputs[0]])
    result = linear.outputs[0]
    e.views.setdefault(result, View(result, contiguous(result.type.shape)))
    return Parts(linear, (), (), (result,)), Parts(main, tuple(nodes[1:end]), tuple(nodes[end + 1 :]), e.node.outputs)


def add_parts(e: Emission, writer: HookWriter, space: Space, p: Problem, parts: Value) -> None:
    """Lines that add up the parts of the product, and its bias. parts: (parts, 1, M, N)."""
    pointer, stride = writer.operand(parts), e.view(parts).strides[0]
    place = writer.add(writer.address(p.main.type.shape, contiguous(p.main.type.shape), space))
    total = writer.add(f"tl.load({pointer} + {place}, mask=mask, other=0.0)")
    for part in range(1, int(parts.type.shape[0])):
        total = writer.add(f"{total} + tl.load({pointer} + ({place} + {part * int(stride)}), mask=mask, other=0.0)")
    if p.bias is not None:
        total = writer.add(f"{total} + {writer.load(p.bias, space)}")
    writer.names[p.main] = total


TEMPLATE = GemmNormTemplate()
