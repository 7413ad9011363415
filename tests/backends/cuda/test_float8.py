"""Kernels of float8 compile for every architecture that has it, to tensor-core instructions, with wide loads, without spilling."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.cuda.float8 import FLOAT8, drawn, linear, narrow, pair
from tests.backends.cuda.test_quantized import COPIES, sass
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.accuracy import judge, references
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.candidate import Candidate
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.float8 import Float8Attention, Float8Linear
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Call, Launch
from torchsmith.backends.cuda.tactics.attention_float8 import AttentionFloat8Config
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.backends.cuda.timing import Bench
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import TensorType
from torchsmith.ir.widen import widened
from torchsmith.ops.attention import Attention
from torchsmith.ops.binary import Binary
from torchsmith.ops.layer_norm import LayerNorm
from torchsmith.ops.permute import Permute
from torchsmith.ops.quantize import dequantize
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.slice import Slice
from torchsmith.ops.unary import Unary
from torchsmith.target import Target

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")

TENSOR_CORES = {
    89: r"QMMA\.16832\.F32\.E4M3",
    90: r"QGMMA\.64x\d+x32\.F32\.E4M3|QGMMA\.64",
    100: r"UTCQMMA|UTC\w*MMA",
    120: r"QMMA",
}
ARCHITECTURES = tuple(TENSOR_CORES)


def graph_of(net: Callable[[Builder, Value], Value], type: TensorType) -> Graph:
    with Builder() as builder:
        return builder.finish([net(builder, builder.input(type))])


def residual(m: int, k: int, n: int) -> Graph:
    """Of float8: a linear layer, a residual of float8, relu, and float8 again."""
    with Builder() as b:
        x, y = (b.input(TensorType((m, size), FLOAT8)) for size in (k, n))
        z = linear(b, dequantize(x, 0.01, None, None, torch.float16), n)
        z = Unary("relu")(Binary("add")(z, dequantize(y, 0.1, None, None, torch.float16)))
        return b.finish([narrow(b, z, 0.2)])


def attends(heads: int, length: int, features: int) -> Graph:
    with Builder() as b:
        given = [b.input(TensorType((2, heads, length, features), FLOAT8)) for _ in range(3)]
        wide = [dequantize(v, 0.01, None, None, torch.float16) for v in given]
        return b.finish([narrow(b, Attention(features**-0.5, False, FLOAT8)(*wide), 0.01)])


def compiled(graph: Graph, kind: str, template: str, arch: int, config: Any = None) -> Cubin:
    """The first node of that kind, alone. config: None for the best guess."""
    graph = fuse(graph)
    node = next(n for n in graph.nodes if getattr(n.op, "kind", "") == kind)
    e = Emission(node, place(graph), Packed(graph.constants))
    chosen = tactics.template(template)
    chosen.emit(e, config or chosen.configs(e)[0])
    (step,) = (s for s in e.steps if isinstance(s, Launch))
    made = compile_kernel(step.kernel, arch)
    assert isinstance(made, Cubin), made
    return made


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensor_cores_multiply_float8(arch: int, tmp_path: Path) -> None:
    text = sass(compiled(residual(4096, 768, 768), "gemm_float8", "gemm_float8", arch, GemmConfig(64, 128, 64, 4, 3)), tmp_path)
    assert re.search(TENSOR_CORES[arch], text), set(re.findall(r"\w*MMA\S*", text))
    assert "STL" not in text and "LDL" not in text  # no register is spilled
    assert re.search(COPIES, text)  # 16 bytes at a time to shared memory


def test_long_sums_are_added_up_in_float32(tmp_path: Path) -> None:
    """Tensor cores of Hopper keep few bits of what they sum up."""
    config = GemmConfig(64, 128, 128, 4, 3)
    additions = [
        len(re.findall(r"\bFADD\b", sass(compiled(residual(4096, k, 768), "gemm_float8", "gemm_float8", 90, config), tmp_path)))
        for k in (4096, 8192)
    ]
    assert additions[1] >= additions[0] + 64 * 128 // 128


def test_few_rows(tmp_path: Path) -> None:
    """Blocks of 16 rows have no warp-group products, and Hopper's others take halves, exactly."""
    text = sass(compiled(residual(8, 768, 768), "gemm_float8", "gemm_float8", 90), tmp_path)
    assert re.search(r"HMMA\.16816\.F32", text) and re.search(r"F2FP\.F16\.E4M3", text)


@pytest.mark.parametrize("arch", [89, 90])
def test_single_rows(arch: int, tmp_path: Path) -> None:
    graph = graph_of(lambda b, x: linear(b, pair(b, x, 0.01), 1000), TensorType((1, 768), torch.float16))
    text = sass(compiled(graph, "gemm_float8", "gemv", arch), tmp_path)
    assert re.search(r"LDG\.E\.128|LDG\.E\.64", text) and "STL" not in text


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rounded", [False, True], ids=["halves", "rounded"])
def test_attention(arch: int, rounded: bool, tmp_path: Path) -> None:
    config = AttentionFloat8Config(64, 64, 4, 2, rounded)
    text = sass(compiled(attends(12, 197, 64), "attention_float8", "attention_float8", arch, config), tmp_path)
    assert re.search(TENSOR_CORES[arch], text) and "STL" not in text and "LDL" not in text
    if not rounded:
        assert re.search({89: "HMMA", 90: "HGMMA", 100: r"UTCHMMA|UTC\w*MMA", 120: "HMMA"}[arch], text)


def test_halves_take_fewer_instructions_than_rounded_probabilities(tmp_path: Path) -> None:
    """On Hopper, which moves values byte by byte to where its products of float8 find them."""
    texts = [
        sass(
            compiled(
                attends(12, 256, 64), "attention_float8", "attention_float8", 90, AttentionFloat8Config(128, 64, 8, 3, rounded)
            ),
            tmp_path,
        )
        for rounded in (False, True)
    ]
    assert "STS.U8" not in texts[0] and "STS.U8" in texts[1]
    first, second = (len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", text, re.M)) for text in texts)
    assert first < second


@pytest.mark.parametrize("arch", [89, 90, 100])
def test_norms_write_both(arch: int, tmp_path: Path) -> None:
    with Builder() as b:
        x = b.input(TensorType((4096, 768), torch.float16))
        y = LayerNorm(1, 1e-5)(x, *(b.constant(torch.ones(768).half()) for _ in range(2)))
        graph = b.finish([y, narrow(b, y, 0.02)])
    text = sass(compiled(graph, "norm", "norm", arch), tmp_path)
    assert re.search(r"E4M3", text) and len(re.findall(r"STG", text)) >= 2 and "STL" not in text


# ---- what it means -----------------------------------------------------------------------------------------------------------


def summed_in_thirteen_bits(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T as Hopper's tensor cores do it: 32 products at a time, 13 bits of each behind the greatest's leading one."""

    def cut(x: Tensor, like: Tensor) -> Tensor:
        step = torch.ldexp(torch.ones_like(like), torch.frexp(like)[1] - 14)
        return torch.trunc(x / step) * step

    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for k in range(0, a.shape[1], 32):
        products = a[:, None, k : k + 32] * b[None, :, k : k + 32]
        greatest = torch.maximum(products.abs().amax(-1), total.abs())
        total = cut(products, greatest[..., None].expand_as(products)).sum(-1) + cut(total, greatest)
        total = cut(total, total)
    return total


@pytest.mark.parametrize(("terms", "error"), [(768, 1e-3), (3072, 2e-3)])
def test_what_tensor_cores_cut_off_is_little_beside_what_rounding_did(terms: int, error: float) -> None:
    """Why sums of up to 4096 terms stay in tensor cores, and what the gate that tactics pass allows."""
    x, w = drawn(32, terms).double(), drawn(32, terms, seed=2).double()
    q, p = ((t * (448 / t.abs().max())).to(FLOAT8).double() for t in (x, w))
    exact = q @ p.T
    cut = summed_in_thirteen_bits(q, p)
    unrounded = (x * (448 / x.abs().max())) @ (w * (448 / w.abs().max())).T
    assert (cut - exact).norm() / exact.norm() < error < 0.1 * (exact - unrounded).norm() / exact.norm()


def test_references() -> None:
    q, k, v = (drawn(2, 5, 16, seed=i).to(FLOAT8) for i in range(3))
    assert torch.equal(Float8Linear().reference(q, k[0]), q.float() @ k[0].float().T)
    given = q.double(), k.double(), v.double()
    wide = Float8Attention(0.2, True, None, torch.float64).reference(q, k, v)
    torch.testing.assert_close(wide, Attention(0.2, True).reference(*given))
    assert Float8Attention(0.2, True, FLOAT8).infer(*(TensorType((2, 5, 16), FLOAT8),) * 3).dtype == torch.float32
    with pytest.raises(Unsupported, match="takes float8_e4m3fn"):
        Float8Linear().infer(TensorType((2, 16), FLOAT8), TensorType((3, 16), torch.float16))


def test_the_gate_allows_another_rounding_and_no_more() -> None:
    with Builder() as b:
        x = b.input(TensorType((64, 128), FLOAT8))
        graph = b.finish([narrow(b, linear(b, dequantize(x, 0.01, None, None, torch.float32), 96), 0.02)])
    fused = fuse(graph)
    (node,) = fused.nodes
    given = [drawn(64, 128, scale=100).to(FLOAT8), *(fused.constants[v] for v in node.inputs[1:])]
    body = Graph(node.op.body.inputs, node.op.body.nodes, node.op.body.outputs)  # type: ignore[attr-defined]
    wanted = references(body, given)
    (right,) = interpret(body, given)
    assert judge([right], wanted).fault is None
    once = torch.where(right.float().abs() < 400, right.float() * 1.125, right.float()).to(FLOAT8)
    once = torch.where((torch.arange(96) == 5)[None] & (torch.arange(64) < 32)[:, None], once.float(), right.float()).to(FLOAT8)
    assert judge([once], wanted).fault is None
    assert judge([(right.float() * 1.13).to(FLOAT8)], wanted).fault is not None
    assert judge([right.roll(1, 0)], wanted).fault is not None


def test_older_gpus_refuse_float8() -> None:
    with Builder() as b:
        x = b.input(TensorType((4, 32), torch.float16))
        graph = b.finish([pair(b, x, 0.01)])
    for arch, refused in (("sm_80", True), ("sm_86", True), ("sm_89", False), ("sm_90", False)):
        why = [BACKEND.refuses(node, Target("cuda", arch)) for node in graph.nodes]
        assert all(w is not None and "sm_89" in w for w in why) if refused else why == [None, None]


@pytest.mark.parametrize("graph", [residual(24, 64, 48), attends(2, 21, 32)], ids=["product", "attention"])
def test_the_tuner_draws_all_of_the_range(graph: Graph) -> None:
    """PyTorch's own results pass the gate, on inputs that reach what float8 has at most."""
    fused = fuse(graph)
    views, packed = place(fused), Packed(fused.constants)
    node = next(n for n in fused.nodes if getattr(n.op, "kind", "").endswith("float8"))
    candidate = Candidate(node, None, [Call(node.op, node.inputs, node.outputs)], views, packed.tensors)
    bench = Bench(node, {}, torch.device("cpu"))
    drawn_inputs = bench.inputs(candidate)
    assert all(t.dtype == FLOAT8 and t.float().abs().max() >= 200 for t in drawn_inputs.values())
    found = bench.check(candidate, lambda *_: None)
    assert found.fault is None and bench.references(candidate).is_finite()
    assert bench.references(candidate).floor == (6e-2 if "Attention" in str(node.op) else 2e-2)


def test_scales_that_follow_one_another_are_one() -> None:
    """A product's, those of query, key and value, and the bias between."""

    def net(b: Builder, x: Value) -> Value:
        return narrow(b, linear(b, dequantize(x, 0.01, None, None, torch.float16), 48), torch.linspace(0.01, 0.02, 48), 1)

    graph = graph_of(net, TensorType((16, 64), FLOAT8))
    (node,) = fuse(graph).nodes
    ops = [str(n.op).partition("(")[0] for n in node.op.body.nodes]  # type: ignore[attr-defined]
    assert ops == ["Float8Linear", "Binary[mul]", "Binary[add]", "Quantize"]
    x = drawn(16, 64, scale=100).to(FLOAT8)
    (found,), (wanted,) = interpret(fuse(graph), [x]), interpret(widened(graph), [x])
    assert (found.double() - wanted.double()).norm() / wanted.double().norm() < 2e-3


def test_a_scale_that_others_see_stays() -> None:
    with Builder() as b:
        y = linear(b, dequantize(b.input(TensorType((16, 64), FLOAT8)), 0.01, None, None, torch.float16), 48)
        graph = b.finish([y, narrow(b, y, 0.02)])
    fused = fuse(graph)
    x = drawn(16, 64, scale=100).to(FLOAT8)
    for found, wanted in zip(interpret(fused, [x]), interpret(widened(graph), [x]), strict=True):
        assert (found.double() - wanted.double()).norm() / wanted.double().norm() < 5e-3


def cut(rank4: bool, ends: tuple[int, ...], axis: int) -> Graph:
    """Parts of relu(x), each quantized by a scale of its own. rank4: cut behind a reshape and a permutation."""
    with Builder() as b:
        y = Unary("relu")(b.input(TensorType((2, 6, 60), torch.float16)))
        if rank4:
            y = Permute((2, 0, 3, 1, 4))(Reshape((2, 6, 3, 4, 5))(y))
        parts, start = [], 0
        for scale, end in zip((0.5, 0.25, 2.0), ends, strict=True):
            part = Slice(axis, start, end)(y)
            part = Reshape(part.type.shape[1:])(part) if rank4 and end - start == 1 and axis == 0 else part
            parts.append(narrow(b, part, scale))
            start = end
        return b.finish(parts)


@pytest.mark.parametrize(
    ("rank4", "ends", "axis", "whole"),
    [
        (True, (1, 2, 3), 0, True),
        (False, (20, 30, 60), 2, True),
        (False, (1, 4, 6), 1, True),
        (True, (1, 3, 5), 4, True),
        (False, (20, 30, 50), 2, False),  # some is left over
    ],
)
def test_parts_with_scales_of_their_own_are_quantized_together(rank4: bool, ends: tuple[int, ...], axis: int, whole: bool) -> None:
    graph = cut(rank4, ends, axis)
    x = drawn(2, 6, 60, scale=3).half()
    fused = fuse(graph)
    for found, wanted in zip(interpret(fused, [x]), interpret(graph, [x]), strict=True):
        assert torch.equal(found.float(), wanted.float())
    assert (sum("Quantize" in str(node.op) for node in fused.nodes) == 1) is whole
