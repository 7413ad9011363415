"""Pointwise programs: every expression against its op, layouts, and every configuration."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import SM_90, check
from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.kernels.pointwise import twin
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics import pointwise
from torchsmith.backends.cuda.tactics.pointwise import PointwiseConfig
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.op import Op
from torchsmith.ir.types import type_of
from torchsmith.ops import binary, unary
from torchsmith.ops.activation import Elu, Gelu, LeakyRelu, PRelu
from torchsmith.ops.cast import Cast
from torchsmith.ops.clamp import Clamp
from torchsmith.ops.compare import Compare


class Chain(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        return F.silu(x * scale + y).clamp(-1.0, 0.75) * 0.5


class Mixed(nn.Module):
    """A contiguous picture and a channels-last one, used twice so that pooling does not take what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.pool(x)
        return F.relu(z + y), z


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 19), (2, 3, 5, 8), (1,), ()])
def test_chain(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scale = torch.randn(shape[-1:])
    found = check(Chain(), torch.randn(shape), scale, torch.randn(shape), dtype=dtype)
    assert found.kernels == ["pointwise"]


@pytest.mark.parametrize("shape", [(2, 24, 20, 20), (2, 3, 5, 5), (1, 130, 9, 9)])
def test_mixed_layouts(shape: tuple[int, ...]) -> None:
    found = check(Mixed(), torch.randn(shape), torch.randn(shape))
    assert found.kernels == ["pool", "tiled" if shape[1] > 3 else "pointwise"]


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.0, 1e-4, -1e-4, 0.03, 12.0, -30.0, 60.0, 1e-20, 3e4, -3e4]
SPECIAL += [float("inf"), float("-inf"), float("nan"), 0.1, -0.3, 0.7, 0.99, -0.999]
# lgamma has no expression
UNARY = [name for name in unary.FUNCTIONS if name not in ("lgamma", "bitwise_not", "logical_not")]


def outputs_of(ops: Sequence[Op], *inputs: Tensor) -> list[Tensor]:
    """Each op of the inputs, simulated; all must be kernels."""
    with Builder({}) as builder:
        given = [builder.input(type_of(t), f"x{i}") for i, t in enumerate(inputs)]
        graph = builder.finish([op(*given) for op in ops])
    (emitted,), views, packed = build.emit(graph, SM_90, BuildConfig())
    assert all(isinstance(s, Launch) for s in emitted.steps)
    return simulate(emitted.steps, dict(zip(graph.inputs, inputs, strict=True)), graph.outputs, packed.tensors, views, {})


def same(op: Op, found: Tensor, inputs: Sequence[Tensor]) -> None:
    """In float32: within a few units in the last place of float64's result, and of float32's where they say otherwise."""
    narrow = op.reference(*inputs)
    assert isinstance(narrow, Tensor) and found.dtype == narrow.dtype
    if not found.is_floating_point():
        assert torch.equal(found, narrow), (op, inputs, found, narrow)
        return
    wide = op.reference(*(t.double() if t.is_floating_point() else t for t in inputs))
    assert isinstance(wide, Tensor)
    close = torch.isclose(found.double(), wide.double(), rtol=4e-6, atol=2e-7, equal_nan=True)
    close |= torch.isclose(found, narrow, rtol=4e-6, atol=2e-7, equal_nan=True)
    wrong = [(*(float(t.expand(close.shape)[i]) for t in inputs), float(found[i]), float(wide[i])) for i in (~close).nonzero()]
    assert not wrong, (str(op), wrong)


def test_functions_of_one_number() -> None:
    x = torch.tensor([*SPECIAL, *torch.linspace(-4, 4, 37).tolist()])
    ops: list[Op] = [unary.Unary(name) for name in UNARY]
    ops += [Gelu("none"), Gelu("tanh"), LeakyRelu(0.1), Elu(0.7, 1.3, 0.9), Clamp(-0.5, 1.0), Clamp(None, 2.0), Clamp(0, None)]
    ops += [Cast(torch.bool), Cast(torch.float16), Cast(torch.float64)]
    for op, found in zip(ops, outputs_of(ops, x), strict=True):
        same(op, found, [x])


def test_functions_of_two_numbers() -> None:
    pairs = torch.tensor([(a, b) for a in SPECIAL for b in SPECIAL])
    x, y = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    ops: list[Op] = [binary.Binary(name) for name in (*binary.ARITHMETIC, *binary.FLOATING)]
    ops += [Compare(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")] + [PRelu()]
    for op, found in zip(ops, outputs_of(ops, x, y), strict=True):
        same(op, found, [x, y])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype) -> None:
    x = torch.arange(-40 if dtype != torch.uint8 else 3, 90, dtype=dtype)
    y = torch.cat([x[1:], x[:1]]) * 3 % 23 - (0 if dtype == torch.uint8 else 11)
    y[y == 0] = 5
    ops: list[Op] = [binary.Binary(name) for name in (*binary.ARITHMETIC, *binary.BITWISE) if name != "pow"]
    ops += [Compare("lt"), Compare("eq")]
    for op, found in zip(ops, outputs_of(ops, x, y), strict=True):
        same(op, found, [x, y])
    ops = [unary.Unary(name) for name in ("relu", "neg", "abs", "sign", "bitwise_not")]
    ops += [Clamp(2, 9), Cast(torch.float32), Cast(torch.bool), Cast(torch.int64)]
    for op, found in zip(ops, outputs_of(ops, x), strict=True):
        same(op, found, [x])


def test_bools_and_casts() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    ops: list[Op] = [binary.Binary(name) for name in ("add", "mul", "maximum", "minimum", "bitwise_xor")]
    for op, found in zip(ops, outputs_of(ops, a, b), strict=True):
        same(op, found, [a, b])
    ops = [unary.Unary("logical_not"), Cast(torch.float16), Cast(torch.int32)]
    for op, found in zip(ops, outputs_of(ops, a), strict=True):
        same(op, found, [a])
    x = torch.tensor([0.0, 1.7, -1.7, 100.2, 255.0])
    ops = [Cast(dtype) for dtype in (torch.int64, torch.int32, torch.int16)]
    for op, found in zip(ops, outputs_of(ops, x), strict=True):
        same(op, found, [x])


CONFIGS = [PointwiseConfig(0, 64, 1), PointwiseConfig(0, 1024, 4), PointwiseConfig(16, 32, 2), PointwiseConfig(64, 8, 4)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", [(2, 24, 6, 7), (1, 3, 9, 5)])
def test_configurations(config: PointwiseConfig, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pointwise, "configs_of", lambda e, loop, itemsize: [config if loop.rows or not config.block_r else CONFIGS[0]]
    )
    found = check(Mixed(), torch.randn(shape), torch.randn(shape))
    assert found.kernels == ["pool", "tiled" if config.block_r else "pointwise"]


def test_twin() -> None:
    x, y = torch.randn(2, 5, 7).half(), torch.randn(7).half()
    (found,) = outputs_of([binary.Binary("mul")], x, y)
    assert torch.equal(found, twin(torch.mul, [x, y], torch.float16))
