"""Float8 (e4m3fn) on a GPU: each kernel in each configuration, models in many tactics, and whole compiled ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchsmith
from tests.backends.cuda.float8 import FLOAT8, drawn, linear, narrow, pair, rounded
from tests.backends.cuda.on_gpu.nets import HALF, Bert, Layer, Vit, error, images, made, needs_gpu, words
from tests.backends.cuda.on_gpu.test_gpu_kernels import (
    check_any_choice,
    model_of,
    no_recording_without_a_cache,  # noqa: F401 - a fixture
    references,
)
from tests.backends.cuda.simulated import graph_of, relative
from torchsmith import backends
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.cubins import Cubin, compile_all
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.float8 import LEAST_ARCHITECTURE
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.timing import device_timer
from torchsmith.backends.cuda.tune import Search
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.activation import Gelu
from torchsmith.ops.attention import Attention
from torchsmith.ops.binary import Binary
from torchsmith.ops.layer_norm import LayerNorm
from torchsmith.ops.quantize import dequantize
from torchsmith.ops.unary import Unary
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.runtime.compiled import CompiledModule


def older() -> bool:
    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor < LEAST_ARCHITECTURE


pytestmark = [needs_gpu, pytest.mark.skipif(older(), reason=f"GPUs compute in float8 from sm_{LEAST_ARCHITECTURE} on")]
SEEDS = 4


# ---- each kernel ----------------------------------------------------------------------------------------------------------


def product(m: int, k: int, n: int, dtype: torch.dtype, narrows: bool, residual: bool = False) -> Graph:
    """A layer of float8, gelu or a residual, and float8 again where it narrows."""
    with Builder() as b:
        y = linear(b, dequantize(b.input(TensorType((m, k), FLOAT8)), 0.01, None, None, dtype), n)
        y = Binary("add")(y, b.input(TensorType((m, n), dtype))) if residual else Gelu("none")(y)
        return b.finish([narrow(b, y, 0.02) if narrows else y])


def attends(
    batch: int, heads: int, length: int, keys: int, features: int, mask: str = "", causal: bool = False, dtype: torch.dtype = HALF
) -> Graph:
    with Builder() as b:
        sizes = ((length, features), (keys, features), (keys, features))
        given = [b.input(TensorType((batch, heads, *size), FLOAT8)) for size in sizes]
        wide = [dequantize(v, 0.01, None, None, dtype) for v in given]
        if mask:
            shape = (batch, 1, 1, keys) if mask == "bool" else (length, keys)
            wide.append(b.input(TensorType(shape, torch.bool if mask == "bool" else dtype)))
        return b.finish([narrow(b, Attention(features**-0.5, causal, FLOAT8)(*wide), 0.01)])


def norms(rows: int, width: int) -> Graph:
    """A residual, a norm, and what it gives in float8; the sum too."""
    with Builder() as b:
        x, y = (b.input(TensorType((rows, width), HALF)) for _ in range(2))
        total = Binary("add")(x, y)
        normed = LayerNorm(1, 1e-5)(total, *(b.constant(drawn(width, seed=s).half()) for s in (1, 2)))
        return b.finish([total, narrow(b, normed, 0.01)])


def pointwise(rows: int, width: int) -> Graph:
    with Builder() as b:
        x = b.input(TensorType((rows, width), HALF))
        return b.finish([Unary("relu")(pair(b, Unary("neg")(x), torch.linspace(0.01, 0.03, width), 1))])


CASES: dict[str, Callable[[], Graph]] = {
    "large": lambda: product(6304, 768, 2304, HALF, True),
    "residual": lambda: product(4096, 3072, 768, HALF, False, residual=True),
    "bfloat": lambda: product(1576, 768, 768, torch.bfloat16, False),
    "long": lambda: product(512, 8192, 512, HALF, True),
    "odd": lambda: product(37, 300, 45, HALF, True, residual=True),
    "float": lambda: product(130, 96, 64, torch.float32, False),
    "few": lambda: product(8, 768, 3072, HALF, True),
    "rows": lambda: product(3, 770, 1000, HALF, True),
    "row": lambda: product(1, 768, 1000, torch.float32, False),
    "vit": lambda: attends(8, 12, 197, 197, 64),
    "bert": lambda: attends(8, 12, 128, 128, 64, "bool"),
    "added": lambda: attends(2, 3, 70, 133, 40, "add"),
    "causal": lambda: attends(2, 3, 150, 150, 128, causal=True, dtype=torch.bfloat16),
    "single": lambda: attends(1, 12, 197, 197, 64, dtype=torch.float32),
    "wide": lambda: attends(1, 2, 64, 300, 200),
    "norm": lambda: norms(1576, 768),
    "norm of few rows": lambda: norms(8, 1024),
    "pointwise": lambda: pointwise(1000, 333),
}


@pytest.mark.parametrize("case", CASES)
def test_each_tactic_gives_what_the_graph_means(case: str) -> None:
    """By the gate that tuning has: float64, and PyTorch on the same numbers."""
    graph, target = fuse(CASES[case]()), backends.target_of("cuda")
    timer = device_timer(target)
    assert timer is not None
    search = Search(place(graph), Packed(graph.constants), 100)
    ran = 0
    for node in graph.nodes:
        problem = search.problem(node, {})
        for tactic in problem.tactics:
            candidate = search.candidate(problem, tactic)
            made = dict(compile_all([s.kernel for s in candidate.launches], int(target.arch.removeprefix("sm_"))))
            if not all(isinstance(cubin, Cubin) for cubin in made.values()):
                continue  # too much shared memory for this GPU
            found = timer.check(candidate, {kernel.key(): cubin for kernel, cubin in made.items() if isinstance(cubin, Cubin)})
            if isinstance(found, str) and tactic is not None and tactic.template == "cublas_float8":
                print(tactic, found)  # what this version of the library has not
                continue
            assert not isinstance(found, str), (str(tactic), found)
            assert found.fault is None, (str(tactic), found)
            ran += 1
    assert ran >= 2, f"{case} has one tactic alone"


def test_every_number_is_rounded_as_pytorch_does() -> None:
    """All halves, infinities and NaN among them, and what lies between two numbers of float8."""
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    with Builder() as b:
        graph = b.finish([narrow(b, b.input(TensorType((1 << 16,), HALF)), 0.25)])
    target = backends.target_of("cuda")
    run = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=False)), target)
    found = run([halves.cuda()])[0].cpu().float()
    wanted = (halves.float() * 4).clamp(-448, 448).to(FLOAT8).float()
    assert torch.equal(found.nan_to_num(1e9), wanted.nan_to_num(1e9))


@pytest.mark.parametrize("terms", [768, 4096, 8192])
def test_how_far_sums_in_tensor_cores_are_off(terms: int) -> None:
    """`float8.py` says by how much on Hopper, and from how many terms on sums are added up in float32."""
    graph, target = product(256, terms, 256, torch.float32, False), backends.target_of("cuda")
    x = (drawn(256, terms, seed=3) * 112).clamp(-448, 448).to(FLOAT8)
    run = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=False)), target)
    _, wanted = references(graph, [x])
    found = relative([t.cpu() for t in run([x.cuda()])], wanted)
    print(f"{terms} terms: {found:.1e}")
    assert found < 5e-3


# ---- whole models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", [Vit, Bert], ids=["vit", "bert"])
def test_any_choice_of_tactics_is_right(kind: type[nn.Module], seed: int) -> None:
    """Rounding turns a last bit into a step of an eighth now and then, in PyTorch's half precision as in ours."""
    model, given = model_of(kind)
    graph = rounded(graph_of(model, given, HALF), given)
    check_any_choice(graph, given, seed, 1.5, 3e-2, ["Float8Attention", "Float8Linear"])


@pytest.mark.parametrize("tune", [False, True], ids=["guessed", "tuned"])
@pytest.mark.parametrize("kind", [Vit, Bert], ids=["vit", "bert"])
def test_calibrated(kind: type[nn.Module], tune: bool) -> None:
    """As users ask for it."""
    model = made(kind)
    data = [(images(8, seed=s),) if kind is Vit else words(8, seed=s) for s in (1, 2, 3)]
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(*(t.double() if t.is_floating_point() else t for t in data[0]))
    fast = torchsmith.compile(
        model, inputs=list(data[0]), enabled_precisions={HALF, FLOAT8}, calibrator=DataLoaderCalibrator(data[1:]), tune=tune,
        require_eight_bits=True,
    )  # fmt: skip
    assert isinstance(fast, CompiledModule)
    ran = [str(step.about.get("node", "")) for step in fast.engines[0].runner.plan.variants[0].steps]  # type: ignore[attr-defined]
    assert any("Float8Linear" in node for node in ran) and any("Float8Attention" in node for node in ran), ran
    assert error(fast(*data[0]), wanted) < 0.15
    assert torch.equal(fast(*data[0]), fast(*data[0]))


@pytest.mark.parametrize("tune", [False, True], ids=["guessed", "tuned"])
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 197, 768), (4, 130, 256)])
def test_a_layer(batch: int, length: int, width: int, tune: bool) -> None:
    """A transformer's layer as large ones have it; the same twice."""
    torch.manual_seed(0)
    model, given = Layer(width, width // 64).eval(), (torch.randn(batch, length, width),)
    graph, target = rounded(graph_of(model, given, HALF), given), backends.target_of("cuda")
    run = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=tune)), target)
    eager, wanted = references(graph, given)
    first, second = (run([t.cuda() for t in given])[0].cpu() for _ in range(2))
    assert torch.equal(first, second)
    assert relative([first], wanted) <= 1.5 * relative(eager, wanted) + 2e-2
    exact = references(graph_of(model, given, HALF), given)[1]
    assert relative([first], exact) < 0.1, "what float8 costs"
