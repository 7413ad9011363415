"""Attention over float8: sizes, masks, both ways to multiply with values, and blocks of models whose layers are all float8."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.backends.cuda.float8 import FLOAT8, GREATEST, narrow, rounded
from tests.backends.cuda.interpreted.test_attention import Block
from tests.backends.cuda.interpreted.test_gemm_norm import PreNorm
from tests.backends.cuda.on_gpu.nets import Layer
from tests.backends.cuda.simulated import graph_of, relative, stepped
from torchsmith import Input
from torchsmith.backends.cuda.kernels.attention import twin_float8
from torchsmith.backends.cuda.steps import Launch, Step
from torchsmith.backends.cuda.tactics.attention_float8 import AttentionFloat8Config, AttentionFloat8Template
from torchsmith.backends.cuda.tactics.norm import NormTemplate
from torchsmith.backends.cuda.tactics.rows import RowConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ir.widen import widened
from torchsmith.ops.attention import Attention
from torchsmith.ops.quantize import dequantize

SCALES = (0.011, 0.013, 0.012)  # of queries, keys and values


def three(heads: tuple[int, ...], length: int, keys: int, features: int, values: int = 0) -> list[Tensor]:
    sizes = ((length, features), (keys, features), (keys, values or features))
    return [(torch.randn(*heads, *size) / s).clamp(-GREATEST, GREATEST).to(FLOAT8) for size, s in zip(sizes, SCALES, strict=True)]


def attention(given: list[Tensor], scale: float, causal: bool, dtype: torch.dtype, out: float | None, rounds: bool = True) -> Graph:
    """given: queries, keys, values, and a mask or none. out: by which scale the result is quantized; None where it is not."""
    with Builder() as b:
        values = [b.input(type_of(t)) for t in given]
        wide = [dequantize(v, s, None, None, dtype) for v, s in zip(values[:3], SCALES, strict=True)]
        y = Attention(scale, causal, FLOAT8 if rounds else None)(*wide, *values[3:])
        return b.finish([y if out is None else narrow(b, y, out)])


def ran(steps: list[Step]) -> list[str]:
    return [s.kernel.function if isinstance(s, Launch) else f"[{type(s.op).__name__}]" for s in steps]


CONFIGS = [
    AttentionFloat8Config(16, 32, 2, 2),
    AttentionFloat8Config(16, 64, 4, 3, rounded=True),
    AttentionFloat8Config(32, 32, 4, 2, rounded=True),
]


SIZES = [(19, 37, 20, 20), (5, 150, 64, 40), (33, 64, 33, 33)]
MASKS = ["plain", "causal", "bool", "add"]
# each configuration with each kind of mask, and with each size
TOGETHER = [(*SIZES[(i + j) % 3], kind, config) for i, kind in enumerate(MASKS) for j, config in enumerate(CONFIGS)]


@pytest.mark.parametrize(("length", "keys", "features", "values", "kind", "config"), TOGETHER, ids=str)
def test_sizes(
    length: int, keys: int, features: int, values: int, kind: str, config: AttentionFloat8Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionFloat8Template, "configs", lambda self, e: [config])
    torch.manual_seed(0)
    given, dtype = three((2, 3), length, keys, features, values), torch.float16
    mask = None
    if kind == "bool":
        mask = torch.rand(2, 1, length, keys) < 0.7
        mask[0, 0, 0] = False  # nothing takes part
    elif kind == "add":
        mask = torch.randn(length, keys, dtype=dtype)
    given += [] if mask is None else [mask]
    graph = attention(given, features**-0.5, kind == "causal", dtype, None)
    steps, (found,) = stepped(graph, given)
    assert ran(steps) == ["attention"]
    causal = kind == "causal"
    scale = features**-0.5 * SCALES[0] * SCALES[1]
    q, k, v = given[:3]
    twin = twin_float8(q, k, v, mask, scale, causal, config.rounded, config.block_n) * SCALES[2]
    assert relative([found], [twin]) < 1e-3, "but for the last rounding, it does what its twin does"
    wide = [*given[:3], *(m if m.dtype == torch.bool else m.double() for m in given[3:])]
    exact = attention(wide, features**-0.5, causal, torch.float64, None, rounds=False)
    assert relative([found], interpret(exact, wide)) < (4e-2 if config.rounded else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bytes_in_and_out(dtype: torch.dtype) -> None:
    given = three((2, 2), 21, 21, 32)
    graph = attention(given, 0.2, False, dtype, 0.004)
    steps, (found,) = stepped(graph, given)
    (wanted,) = interpret(graph, given)
    assert ran(steps) == ["attention"] and found.dtype == FLOAT8 and relative([found], [wanted]) < 6e-2


def test_operands_that_are_not_all_float8_are_not_rounded() -> None:
    """The pairs that are there are computed in halves, and so is attention."""
    given = three((1, 2), 21, 21, 32)
    with Builder() as b:
        q, k, v = (b.input(type_of(t)) for t in (given[0], given[1], given[2].half()))
        wide = [dequantize(x, s, None, None, torch.float16) for x, s in zip((q, k), SCALES, strict=False)]
        graph = b.finish([Attention(0.2, False, FLOAT8)(*wide, v)])
    given[2] = given[2].half() * SCALES[2]
    steps, (found,) = stepped(graph, given)
    (wanted,) = interpret(widened(graph), [*given[:2], given[2].double()])
    assert "attention" in ran(steps) and "pointwise" in ran(steps) and relative([found], [wanted]) < 4e-2


# ---- whole blocks ---------------------------------------------------------------------------------------------------------


def compared(
    module: nn.Module,
    *given: Tensor,
    dtype: torch.dtype = torch.float16,
    sizes: Sequence[Input] | None = None,
    channels: bool = True,
) -> tuple[list[str], list[Launch], float, float]:
    """What ran, the launches, and the errors of the engine and of PyTorch against the graph in float64.

    sizes: dynamic ones. channels: whether weights have a scale for each.
    """
    torch.manual_seed(0)
    graph = rounded(graph_of(module, sizes or given, dtype), given, channels)
    steps, found = stepped(graph, given)
    eager = interpret(graph, given)
    wide = interpret(widened(graph), [t.double() if t.is_floating_point() else t for t in given])
    return ran(steps), [s for s in steps if isinstance(s, Launch)], relative(found, wide), relative(eager, wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_query_key_and_value_are_one_product(dtype: torch.dtype) -> None:
    """Each has its own scale, and the product writes all of them in float8."""
    names, launches, error, eager = compared(Block(96, 3), torch.randn(2, 13, 96), dtype=dtype)
    assert names == ["pointwise", "gemm", "attention", "gemm"], names
    assert [v.type.dtype for s in launches[:3] for v in s.writes] == [FLOAT8] * 3
    assert error < 1.5 * eager + 2e-2


class Separate(nn.Module):
    """Query, key and value by layers of their own, as BERT has them, and a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(b, n, c)
        normed: Tensor = self.norm(x + self.out(y))
        return normed


@pytest.mark.parametrize("channels", [True, False], ids=["scales of channels", "one scale"])
def test_layers_of_their_own_are_one_product(channels: bool) -> None:
    mask = torch.ones(2, 1, 1, 13, dtype=torch.bool)
    mask[1, ..., 7:] = False
    names, _, error, eager = compared(Separate(96, 3), torch.randn(2, 13, 96), mask, channels=channels)
    assert names[:4] == ["pointwise", "pointwise", "gemm", "attention"] and names.count("gemm") == 2, names  # a cast of the input
    assert error < 1.5 * eager + 2e-2


@pytest.mark.parametrize("config", [None, RowConfig(2, 64, 1), RowConfig(1, 16, 1, loop=True)], ids=str)
def test_layer(config: RowConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer's layer: everything that is read more than once, but for the residual, is one byte."""
    if config is not None:
        monkeypatch.setattr(NormTemplate, "configs", lambda self, e: [config])
    names, launches, error, eager = compared(Layer(64, 2), torch.randn(2, 40, 64))
    kind = "norm_long" if config and config.loop else "norm"
    assert names == [kind, "gemm", "attention", "pointwise", "gemm", kind, "gemm", "gemm"], names
    written = [{v.type.dtype for v in s.writes} for s in launches if s.kernel.function != "pointwise"]  # a cast of the input
    assert [FLOAT8 in dtypes for dtypes in written] == [True, True, True, False, True, True, False]
    assert error < 1.5 * eager + 2e-2


def test_few_rows_are_normed_as_the_parts_of_their_product_are_added_up() -> None:
    names, launches, error, eager = compared(PreNorm(600, 48), torch.randn(1, 9, 600), torch.randn(1, 9, 48))
    (index,) = [i for i, s in enumerate(launches) if any("parts" in v.name for v in s.writes)]
    assert [s.kernel.function for s in launches[index : index + 2]] == ["gemm", "norm"], names
    assert FLOAT8 in {v.type.dtype for v in launches[index + 1].writes} and error < 1.5 * eager + 2e-2


@pytest.mark.parametrize("rows", [1, 3])
def test_dynamic_sizes(rows: int) -> None:
    sizes = [Input((Dim("n", max=8), Dim("l", min=2, max=64), 96))]
    names, launches, error, eager = compared(Block(96, 3), torch.randn(rows, 13, 96), sizes=sizes)
    assert names == ["pointwise", "gemm", "attention", "gemm"], names
    assert [v.type.dtype for s in launches[:3] for v in s.writes] == [FLOAT8] * 3
    assert error < 1.5 * eager + 2e-2
