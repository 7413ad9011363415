"""Reduced precision: which dtype is taken, and where the casts stand."""

from __future__ import annotations

import warnings

import pytest
import torch

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.grid_sample import GridSample
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul
from torchsmith.ops.quantize import Dequantize, Quantize
from torchsmith.ops.registry import load_all
from torchsmith.ops.unary import Unary
from torchsmith.quantize import precision
from torchsmith.quantize.policy import FOLLOWING, ROLES
from torchsmith.quantize.precision import choose_precision, reduce_precision
from torchsmith.target import Target
from torchsmith.testing.compare import relative_error
from torchsmith.testing.op_case import OpCase, rand

BF16_CPU = Target("cpu", "x86_64", ("avx2", "avx512_bf16"), "a CPU")
OLD_CPU = Target("cpu", "x86_64", ("avx2",), "an old CPU")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_told", set())


@pytest.mark.parametrize(
    ("enabled", "target", "chosen", "told"),
    [
        ({F32}, BF16_CPU, F32, None),
        ({F32, BF16}, BF16_CPU, BF16, None),
        ({BF16}, OLD_CPU, F32, "does not compute in torch.bfloat16 natively; torchsmith takes torch.float32"),
        ({F16}, BF16_CPU, F32, "add torch.bfloat16 to enabled_precisions"),
        ({F16, BF16}, BF16_CPU, BF16, "does not compute in torch.float16 natively; torchsmith takes torch.bfloat16"),
        ({F16, BF16}, Target("cuda", "sm_90"), F16, None),
    ],
)
def test_the_fastest_native_dtype_is_taken_and_the_user_told(
    enabled: set[torch.dtype], target: Target, chosen: torch.dtype, told: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose_precision(enabled, target) == chosen
        assert choose_precision(enabled, target) == chosen
    assert len(caught) == (told is not None)  # once, not twice
    if told:
        assert told in str(caught[0].message)


def casts(graph: Graph) -> int:
    return sum(isinstance(n.op, Cast) for n in graph.nodes)


def network(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    y = torch.relu(torch.nn.functional.conv2d(x, w))
    return torch.nn.functional.linear((y + 1).flatten(1), v)


CASE = OpCase(network, rand(2, 3, 5, 5), rand(4, 3, 3, 3), rand(6, 36))


def test_matrix_work_and_what_follows_it_is_reduced_and_the_ends_keep_their_types() -> None:
    graph = CASE.graph()
    reduced = reduce_precision(graph, BF16)
    verify(reduced, "quantize")
    assert [v.type.dtype for v in (*reduced.inputs, *reduced.outputs)] == [F32] * 4
    inside = {v.type.dtype for n in reduced.nodes if not isinstance(n.op, Cast) for v in n.outputs}
    assert inside == {BF16}
    assert casts(reduced) == 4  # three inputs down, one output up
    wanted = interpret(graph, CASE.inputs)[0]
    assert 0 < relative_error(interpret(reduced, CASE.inputs)[0], wanted) < 1e-2


def test_float32_leaves_the_graph_alone() -> None:
    graph = CASE.graph()
    assert reduce_precision(graph, F32) is graph


def test_constants_are_reduced_once_at_compile_time() -> None:
    with Builder() as b:
        x, w = b.input(TensorType((2, 4), F32)), b.constant(rand(3, 4))
        graph = b.finish([Linear()(x, w), Linear()(Linear()(x, w), b.constant(rand(5, 3)))])
    reduced = reduce_precision(graph, BF16)
    assert [t.dtype for t in reduced.constants.values()] == [BF16, BF16]
    assert casts(reduced) == 3  # one input down, two outputs up


def test_integers_and_wide_functions_stay_as_they_are() -> None:
    def wide(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.nn.functional.linear(x, w)).log()

    reduced = reduce_precision(OpCase(wide, rand(2, 4), rand(3, 4)).graph(), BF16)
    functions = {n.op.function: n.outputs[0].type.dtype for n in reduced.nodes if hasattr(n.op, "function")}
    assert functions == {"exp": F32, "log": F32}


def test_the_policy_names_only_ops_that_exist() -> None:
    load_all()
    assert set(ROLES) | set(FOLLOWING) <= set(REGISTRY)
    assert not set(ROLES) & set(FOLLOWING)
    for family, functions in FOLLOWING.items():
        known = __import__(f"torchsmith.ops.{family.lower()}", fromlist=["FUNCTIONS"]).FUNCTIONS
        assert functions <= set(known), f"{family} has no {functions - set(known)}"


def test_masks_stay_finite() -> None:
    least = torch.finfo(F32).min

    def masked(x: torch.Tensor, w: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.nn.functional.linear(x, w).masked_fill(mask, least), -1)

    case = OpCase(masked, rand(2, 4), rand(3, 4), torch.tensor([[True, True, True], [False, True, False]]))
    reduced = reduce_precision(case.graph(), BF16)
    (given,) = interpret(reduced, case.inputs)
    assert torch.isfinite(given).all()
    assert relative_error(given, masked(*case.inputs)) < 1e-2


def test_pairs_take_what_reaches_them_keep_their_scales_and_give_the_reduced_dtype() -> None:
    with Builder() as b:
        x, v, w, s = (b.input(TensorType(size, F32)) for size in ((2, 4), (4, 4), (3, 4), (2, 4)))
        step, steps = b.constant(torch.tensor(0.02)), b.constant(torch.full((3,), 0.01))
        pair = Dequantize(F32)(Quantize(torch.int8, -128, 127)(Linear()(x, v), step), step)
        weight = Dequantize(F32, 0)(Quantize(torch.int8, -127, 127, 0)(w, steps), steps)
        kept = Dequantize(F32)(Quantize(torch.int8, -128, 127)(s, step), step)
        graph = b.finish([Linear()(pair, weight), kept])
    reduced = reduce_precision(graph, BF16)
    verify(reduced, "quantize")
    assert {t.dtype for t in reduced.constants.values()} == {F32}
    assert {n.outputs[0].type.dtype for n in reduced.nodes if isinstance(n.op, Dequantize)} == {BF16}
    inputs = [rand(2, 4), rand(4, 4), rand(3, 4), rand(2, 4)]
    for given, wanted in zip(interpret(reduced, inputs), interpret(graph, inputs), strict=True):
        assert relative_error(given, wanted) < 2e-2


def test_matrix_work_may_say_its_own_precision_and_what_follows_two_kinds_is_float32() -> None:
    with Builder() as b:
        x, y = (b.input(TensorType((2, 4), F32)) for _ in range(2))
        weights = [b.constant(rand(4, 4)) for _ in range(3)]
        with b.at("kept", precision=F32):
            first = Linear()(x, weights[0])
        with b.at("other", precision=BF16):
            second = Linear()(y, weights[1])
        third = Linear()(first, weights[2])
        graph = b.finish([Binary("add")(second, third), Unary("relu")(first), Unary("relu")(third)])
    reduced = reduce_precision(graph, F16)
    verify(reduced, "quantize")
    linears = [n.outputs[0].type.dtype for n in reduced.nodes if isinstance(n.op, Linear)]
    follow = [n.outputs[0].type.dtype for n in reduced.nodes if isinstance(n.op, (Binary, Unary))]
    assert sorted(map(str, linears)) == sorted(map(str, [F32, BF16, F16])) and follow == [F32, F32, F16]
    assert reduce_precision(b.finish([first]), F32).nodes[0].op == Linear()


def warped(x: torch.Tensor, w: torch.Tensor, places: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """x convolved, sampled where a flow that it is convolved to points, from places that are turned."""
    flow = torch.nn.functional.conv2d(x, w, padding=1)
    grid = (flow.permute(0, 2, 3, 1) / 100 + places @ turn).clamp(-1, 1) * 0.75
    return torch.relu(torch.nn.functional.grid_sample(torch.relu(flow), grid, align_corners=False))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_grids_and_what_makes_them_stay_in_float32(dtype: torch.dtype) -> None:
    """As what is sampled does, between the half precision of the matrix work before it and after it."""
    # next to each other, pixels differ: a place that is off shows
    x = torch.where(torch.arange(128) % 2 > 0, 1.0, -1.0).expand(1, 2, 128, 128) + rand(1, 2, 1, 128) / 4
    line = torch.linspace(-1, 1, 128)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    case = OpCase(warped, x.contiguous(), rand(2, 2, 3, 3), places, torch.tensor([[0.8, 0.6], [-0.6, 0.8]]))
    reduced = reduce_precision(case.graph(), dtype)
    verify(reduced, "quantize")
    kinds = {type(n.op).__name__: n.outputs[0].type.dtype for n in reduced.nodes if not isinstance(n.op, (Cast, Unary))}
    assert kinds.pop("Convolution") == dtype and set(kinds.values()) == {F32}, kinds
    functions = [n.outputs[0].type.dtype for n in reduced.nodes if isinstance(n.op, Unary)]
    assert functions == [dtype, F32], "before and behind the samples"
    wanted = warped(*(t.double() for t in case.inputs))
    assert relative_error(interpret(reduced, case.inputs)[0], wanted) < {F16: 2e-3, BF16: 1.6e-2}[dtype]


def test_large_products_are_matrix_work_in_front_of_grids_too() -> None:
    with Builder() as b:
        x, weights = b.input(TensorType((1, 3, 8, 8), F32)), b.input(TensorType((1, 4, 6, 64), F32))
        grid = MatMul()(weights, b.constant(rand(64, 2)))
        graph = b.finish([GridSample("bilinear", "zeros")(x, grid)])
    reduced = reduce_precision(graph, F16)
    (product,) = (n for n in reduced.nodes if isinstance(n.op, MatMul))
    assert product.outputs[0].type.dtype == F16
