"""2:4 weights: how engines hold them, what the libraries' ops promise, which nodes they take, and what is laid out at load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from tests.backends.cuda.simulated import SM_90, graph_of
from torchsmith.backends.cuda import build, cusparselt, plan, sparse, tactics
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.inspect import profile
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.sparse import CUSPARSELT, CUTLASS, SparseIntegerLinear, SparseLinear
from torchsmith.backends.cuda.steps import Call
from torchsmith.backends.cuda.tactics.sparse import SparseConfig
from torchsmith.backends.cuda.tactics.sparse_int8 import SparseInt8Config
from torchsmith.backends.cuda.timing_cache import Timing, TimingCache
from torchsmith.backends.cuda.tune import Search
from torchsmith.backends.cuda.two_four import Prepares, packed, unpacked
from torchsmith.cli.steps import gained, sparsity
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch, Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.text import attribute_in, attribute_out
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize
from torchsmith.ops.unary import Unary
from torchsmith.sparsity import two_four_mask

HALF, BFLOAT = torch.float16, torch.bfloat16


def pruned(rows: int, terms: int, dtype: torch.dtype = HALF) -> Tensor:
    weight = torch.randn(rows, terms, generator=torch.Generator().manual_seed(0))
    return (weight * two_four_mask(weight) * (30 if dtype == torch.int8 else 1)).to(dtype)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, torch.int8])
@pytest.mark.parametrize(("rows", "terms"), [(1, 8), (3, 24), (32, 128)])
def test_what_is_packed_comes_back(dtype: torch.dtype, rows: int, terms: int) -> None:
    weight = pruned(rows, terms, dtype)
    weight[0] = 0
    weight[-1, :4] = torch.tensor([0, 0, 0, 7])  # groups with less than two
    stored = packed(weight)
    assert stored.shape == (rows, terms // 2 * dtype.itemsize + terms // 8) and stored.dtype == torch.uint8
    assert torch.equal(unpacked(stored, dtype, terms), weight)


@pytest.mark.parametrize("places", [(a, b) for a in range(4) for b in range(a + 1, 4)])
def test_every_pair_of_places(places: tuple[int, int]) -> None:
    weight = torch.zeros(1, 8, dtype=HALF)
    weight[0, list(places)] = torch.tensor([3.0, -5.0], dtype=HALF)
    assert torch.equal(unpacked(packed(weight), HALF, 8), weight)


def test_terms_that_fill_no_byte_are_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError, match="12 terms are no multiple of 8"):
        packed(torch.zeros(4, 12, dtype=HALF))


@pytest.mark.parametrize(
    "op", [SparseLinear(CUTLASS, BFLOAT, 32, 64, True, 3), SparseIntegerLinear(CUSPARSELT, torch.int32, 32, 64)]
)
def test_they_are_written_as_data(op: SparseLinear | SparseIntegerLinear) -> None:
    written = {name: attribute_out(value) for name, value in op.attributes().items()}
    assert REGISTRY[type(op).__name__](**{name: attribute_in(value) for name, value in written.items()}) == op
    assert isinstance(op, Prepares)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("shape", [(8, 64), (2, 5, 64)])
def test_a_product_gives_what_it_promises(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    op, weight = SparseLinear(CUSPARSELT, dtype, 32, 64), pruned(32, 64, dtype)
    given = torch.randn(shape).to(dtype), packed(weight), torch.randn(32).to(dtype)
    y = op.reference(*given)
    torch.testing.assert_close(y, F.linear(given[0], weight, given[2]))
    assert y.is_contiguous() and type_of(y).matches(op.infer(*map(type_of, given)))


def test_a_product_over_channels_is_a_pointwise_convolution() -> None:
    op, weight = SparseLinear(CUTLASS, HALF, 32, 64, True), pruned(32, 64)
    x, stored = torch.randn(2, 64, 5, 3).half(), packed(weight)
    y = op.reference(x, stored)
    torch.testing.assert_close(y, torch.conv2d(x, weight[:, :, None, None]), rtol=2e-3, atol=2e-3)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert type_of(y).matches(op.infer(type_of(x), type_of(stored)))


def test_a_product_of_integers() -> None:
    weight, x = pruned(32, 64, torch.int8), torch.randint(-128, 128, (3, 5, 64), dtype=torch.int8)
    sums = x.double() @ weight.double().T
    exact = SparseIntegerLinear(CUSPARSELT, torch.int32, 32, 64)
    assert torch.equal(exact.reference(x, packed(weight)).double(), sums)
    assert type_of(exact.reference(x, packed(weight))).matches(exact.infer(type_of(x), type_of(packed(weight))))
    scaled, scale, bias = SparseIntegerLinear(CUSPARSELT, BFLOAT, 32, 64), torch.rand(32) / 1000, torch.randn(32).bfloat16()
    y = scaled.reference(x, packed(weight), scale, bias)
    torch.testing.assert_close(y, (sums * scale + bias).bfloat16())
    assert type_of(y).matches(scaled.infer(*map(type_of, (x, packed(weight), scale, bias))))


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("biased", [True, False])
def test_what_follows_in_the_same_kernel(activation: str, biased: bool) -> None:
    weight, x, bias = pruned(32, 64), torch.randn(2, 64, 4, 4).half(), torch.randn(32).half()
    residual = torch.randn(2, 32, 4, 4).half()
    op = SparseLinear(CUSPARSELT, HALF, 32, 64, True, residual=True, activation=activation)
    given = (x, packed(weight), *([bias] * biased), residual)
    wanted = torch.conv2d(x.double(), weight.double()[:, :, None, None], bias.double() if biased else None) + residual
    wanted = wanted.relu() if activation == "relu" else wanted
    y = op.reference(*given)
    torch.testing.assert_close(y.double(), wanted, rtol=4e-3, atol=4e-3)
    assert y.is_contiguous(memory_format=torch.channels_last) and type_of(y).matches(op.infer(*map(type_of, given)))


def test_integers_with_what_follows() -> None:
    weight, x = pruned(32, 64, torch.int8), torch.randint(-128, 128, (48, 64), dtype=torch.int8)
    scale, bias = torch.rand(32) / 1000, torch.randn(32).half()
    op = SparseIntegerLinear(CUSPARSELT, HALF, 32, 64, activation="relu")
    wanted = ((x.double() @ weight.double().T) * scale + bias).relu().half()
    torch.testing.assert_close(op.reference(x, packed(weight), scale, bias), wanted)


def half(*shape: int) -> TensorType:
    return TensorType(shape, HALF)


def stored_type(rows: int, terms: int, itemsize: int = 2) -> TensorType:
    return TensorType((rows, terms // 2 * itemsize + terms // 8), torch.uint8)


def test_what_the_libraries_cannot_do_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"by 'blas' in torch\.float16"):
        SparseLinear("blas", HALF, 32, 64).infer(half(8, 64), stored_type(32, 64))
    with pytest.raises(Unsupported, match=r"in torch\.float32"):
        SparseLinear(CUTLASS, torch.float32, 32, 64).infer(half(8, 64), stored_type(32, 64))
    with pytest.raises(Unsupported, match=r"f16\[8, 48\] with 32 × 64 weights"):
        SparseLinear(CUTLASS, HALF, 32, 64).infer(half(8, 48), stored_type(32, 64))
    with pytest.raises(Unsupported, match=r"to torch\.float16 with nothing for scale"):
        SparseIntegerLinear(CUSPARSELT, HALF, 32, 64).infer(TensorType((8, 64), torch.int8), stored_type(32, 64, 1))
    with pytest.raises(Unsupported, match=r"cutlass's sparse product of int8 to torch\.float16"):
        channels = TensorType((32,), torch.float32)
        SparseIntegerLinear(CUTLASS, HALF, 32, 64).infer(
            TensorType((8, 64), torch.int8), stored_type(32, 64, 1), channels, channels
        )


def test_what_only_cusparselt_does_is_refused_of_cutlass() -> None:
    given = half(8, 64), stored_type(32, 64)
    with pytest.raises(Unsupported, match="cutlass's sparse product with activation relu"):
        SparseLinear(CUTLASS, HALF, 32, 64, activation="relu").infer(*given)
    with pytest.raises(Unsupported, match="with activation silu"):
        SparseLinear(CUSPARSELT, HALF, 32, 64, activation="silu").infer(*given)
    with pytest.raises(Unsupported, match="with bias and residual none"):
        SparseLinear(CUSPARSELT, HALF, 32, 64, residual=True).infer(*given)


# ---- in engines --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_cusparselt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_cusparselt", True)


def offered(module: nn.Module, x: Tensor, dtype: torch.dtype = HALF) -> tuple[list[tactics.Tactic], str]:
    """Sparse tactics of the first node that has any main op, and what the sparse templates say against it."""
    graph = fuse(graph_of(module, [x], dtype))
    views, constants = place(graph), Packed(graph.constants)
    for node in graph.nodes:
        e = Emission(node, views, constants)
        if tactics.kind_of(e) in tactics.template("sparse").kinds:
            found, refusals = tactics.tactics_of(e)
            return [t for t in found if t.template == "sparse"], " ".join(r for r in refusals if r.startswith("sparse"))
    raise AssertionError("no product")


def two_four(module: nn.Module) -> nn.Module:
    """Every weight, the first convolution's too."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            part.weight.data.mul_(two_four_mask(part.weight))
    return module


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(64, 32), (8, 64)),
        (nn.Linear(64, 32), (2, 4, 64)),
        (nn.Sequential(nn.Linear(64, 32, bias=False), nn.GELU()), (8, 64)),
        (nn.Sequential(nn.Conv2d(64, 32, 1), nn.SiLU()), (2, 64, 4, 4)),
    ],
)
def test_linear_layers_and_pointwise_convolutions_are_taken(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, why = offered(two_four(module), torch.randn(shape), dtype)
    assert found[0].config == SparseConfig(CUSPARSELT, 0) and not why
    assert all(t.config.library == CUSPARSELT for t in found)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(pruned(32, 64).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + x.sum())


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.Conv2d(64, 32, 3, padding=1), (2, 64, 4, 4), "not 1×1 with stride 1"),
        (nn.Conv2d(64, 32, 1, stride=2), (2, 64, 4, 4), "not 1×1 with stride 1"),
        (
            nn.Linear(64, 24),
            (8, 64),
            "cusparselt takes weights N × K and rows M of multiples of 16, 16 and 8; these are 24, 64 and 8",
        ),
        (nn.Linear(64, 32), (7, 64), "these are 32, 64 and 7"),
        (nn.Linear(64, 32), (8, 64), "compute capability 8, and there is none here"),
        (Twice(), (8, 64), "not known when the engine is built"),
    ],
)
def test_others_are_refused(module: nn.Module, shape: tuple[int, ...], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "compute capability" in why:
        monkeypatch.setattr(torch._C, "_has_cusparselt", False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, against = offered(two_four(module), torch.randn(shape))
    assert not found and why in against, against


def test_dense_weights_and_float32_are_refused() -> None:
    assert "the weights are not 2:4; torchsmith.sparsify" in offered(nn.Linear(64, 32), torch.randn(8, 64))[1]
    found, why = offered(two_four(nn.Linear(64, 32)), torch.randn(8, 64), torch.float32)
    assert not found and "it takes float16 and bfloat16" in why


@pytest.mark.usefixtures("with_cusparselt")
def test_cutlass_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsmith.backends.cuda.tactics.sparse.has_cutlass", lambda: True)
    found, _ = offered(two_four(nn.Linear(64, 32)), torch.randn(8, 64))
    assert [t.config.library for t in found].count(CUTLASS) == 1 and found[-1].config.library == CUTLASS


def test_a_dense_and_a_sparse_layer_are_two_problems() -> None:
    graph = fuse(graph_of(nn.Sequential(nn.Linear(64, 64), two_four(nn.Linear(64, 64)), nn.Linear(64, 64)), [torch.randn(8, 64)]))
    search = Search(place(graph), Packed(graph.constants), 100)
    products = [n for n in graph.nodes if getattr(n.op, "kind", "") == "gemm"]
    names = [search.problem(n, {}).signature for n in products]
    assert len(products) == 3 and names[1] not in (names[0], names[2])


@pytest.mark.usefixtures("with_cusparselt")
def test_a_plan_lays_sparse_weights_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "ORDER", ("sparse", *(name for name in tactics.ORDER if name != "sparse")))
    graph = graph_of(nn.Sequential(two_four(nn.Linear(64, 32)), nn.Linear(32, 16)), [torch.randn(8, 64)])
    emitted, views, constants = build.emit(graph, SM_90, BuildConfig())
    calls = [s for s in emitted[0].steps if isinstance(s, Call)]
    assert [type(s.op) for s in calls] == [SparseLinear]
    cubins = build.compile_steps(emitted[0].steps, 90)
    engine = plan.write(SM_90, graph.inputs, graph.outputs, emitted, views, constants.tensors, cubins, build.versions())
    read, tensors = plan.read(engine)
    ((name, op),) = read.prepared.items()
    assert str(op) == str(calls[0].op)
    assert tensors[name].dtype == torch.uint8 and tensors[name].shape == (32, 64 + 8)
    assert len(read.constants) == 4  # two biases, the dense weights, and the sparse ones in this form alone


def test_laying_out_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_cusparselt", False)
    with pytest.raises(EngineMismatch, match="was built without it or with an old one; compile the model here"):
        SparseLinear(CUSPARSELT, HALF, 32, 64).prepared(packed(pruned(32, 64)))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, torch.int8])
def test_what_cutlass_is_given_is_the_weights(dtype: torch.dtype) -> None:
    weight = pruned(32, 128, dtype)
    flat = sparse.compressed(CUTLASS, packed(weight), dtype, 128)
    split = 32 * 64 * dtype.itemsize
    values = flat[:split].view(dtype).view(32, -1)
    places = flat[split:].view(torch.int32 if dtype == torch.int8 else torch.int16).view(32, -1)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, places), weight)  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize("change", [{"features": 48}, {"terms": 128}])
def test_a_damaged_plan_is_refused(change: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "ORDER", ("sparse", *(name for name in tactics.ORDER if name != "sparse")))
    graph = graph_of(two_four(nn.Linear(64, 32)), [torch.randn(8, 64)])
    emitted, views, constants = build.emit(graph, SM_90, BuildConfig())
    steps = [replace(s, op=replace(s.op, **change)) if isinstance(s, Call) else s for s in emitted[0].steps]
    cubins = build.compile_steps(steps, 90)
    emitted = [replace(emitted[0], steps=steps)]
    engine = plan.write(SM_90, graph.inputs, graph.outputs, emitted, views, constants.tensors, cubins, build.versions())
    with pytest.raises(EngineMismatch, match=r"takes bytes .*, and .* is not that"):
        plan.read(engine)


# ---- what it gained ----------------------------------------------------------------------------------------------------------


def engine_of(module: nn.Module, x: Tensor, file: Path, sparse_us: float, dense_us: float) -> bytes:
    """Built with the help of a timing cache that has these times for every tactic."""
    graph = graph_of(module, [x])
    fused, cache = fuse(graph), TimingCache(SM_90, file)
    search = Search(place(fused), Packed(fused.constants), 100)
    for problem in search.reached_by(fused.nodes, [{}]):
        for tactic in problem.tactics:
            time = sparse_us if tactic is not None and tactic.template == "sparse" else dense_us
            cache.put(problem.signature, tactic, Timing(time, 1e-4))
    return build.build_engine(graph, SM_90, BuildConfig(timing_cache_path=str(file)))


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize(("sparse_us", "words"), [(4.0, "sparse 1.50×"), (12.0, "dense 0.50×")])
def test_an_engine_tells_what_sparsity_gained(sparse_us: float, words: str, tmp_path: Path) -> None:
    net = nn.Sequential(two_four(nn.Linear(64, 32)), nn.Linear(32, 64), two_four(nn.Linear(64, 24)))
    found = profile(engine_of(net, torch.randn(8, 64), tmp_path / "times", sparse_us, 6.0), {})
    taken, refused = [row for row in found.rows if row.sparsity is not None]
    assert taken.sparsity is not None and refused.sparsity is not None
    assert taken.sparsity.sparse == (sparse_us < 6) and taken.microseconds == min(sparse_us, 6.0)
    assert taken.tactic.startswith("sparse library=cusparselt") == (sparse_us < 6) and gained(taken) == words
    assert (taken.sparsity.sparse_us, taken.sparsity.dense_us) == (sparse_us, 6.0)
    assert not refused.sparsity.sparse and "of multiples of 16, 16 and 8" in refused.sparsity.against
    assert taken.to_json()["sparsity"]["against"] == "" and gained(refused) == "dense"
    text = sparsity(found)
    if sparse_us < 6:
        assert text.startswith(
            "1 of 2 nodes with 2:4 weights run on sparse tensor cores: 1.50× as fast as the best dense tactics, 2.0"
        )
    else:
        assert text.startswith("0 of 2 nodes with 2:4 weights run on sparse tensor cores; 1 are faster dense, as timed")
    assert "; 1 cannot: cusparselt takes weights" in text


@pytest.mark.usefixtures("with_cusparselt")
def test_dense_engines_say_nothing_of_it(tmp_path: Path) -> None:
    found = profile(engine_of(nn.Linear(64, 32), torch.randn(8, 64), tmp_path / "times", 1.0, 6.0), {})
    assert [row.sparsity for row in found.rows] == [None] * len(found.rows)


# ---- int8 --------------------------------------------------------------------------------------------------------------------


def integer_layer(rows: int, features: int, terms: int, dense: bool = False) -> Emission:
    """A linear layer of int8 with relu, as its fused node's emission."""
    weight = torch.randint(-127, 128, (features, terms)).to(torch.int8) if dense else pruned(features, terms, torch.int8)
    with Builder() as builder:
        x = builder.input(TensorType((rows, terms), torch.int8))
        pair = dequantize(x, 0.05, None, None, HALF), dequantize(builder.constant(weight), 0.01, None, None, HALF)
        graph = fuse(builder.finish([Unary("relu")(Linear()(*pair))]))
    (node,) = graph.nodes
    return Emission(node, place(graph), Packed(graph.constants))


@pytest.mark.usefixtures("with_cusparselt")
def test_integers_are_scaled_by_the_library_or_after_it() -> None:
    found = [t.config for t in tactics.tactics_of(integer_layer(48, 32, 64))[0] if t.template == "sparse_int8"]
    fused = [SparseInt8Config(CUSPARSELT, True, fused=True)] if cusparselt.library() else []
    assert found == [*fused, SparseInt8Config(CUSPARSELT, True), SparseInt8Config(CUSPARSELT, False)]
    assert [tactics.from_json(tactics.Tactic("sparse_int8", c).to_json()).config for c in found] == found


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize(
    ("sizes", "dense", "why"),
    [
        ((48, 48, 64), False, "of multiples of 32, 32 and 16; these are 48, 64 and 48"),
        ((40, 32, 64), False, "these are 32, 64 and 40"),
        ((48, 32, 64), True, "the weights are not 2:4"),
    ],
)
def test_integers_that_are_refused(sizes: tuple[int, int, int], dense: bool, why: str) -> None:
    found, refusals = tactics.tactics_of(integer_layer(*sizes, dense))
    assert not any(t.template == "sparse_int8" for t in found)
    assert any(r.startswith("sparse_int8: ") and why in r for r in refusals), refusals


# ---- cuSPARSELt's own interface ------------------------------------------------------------------------------------------------


def test_without_the_library_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_cusparselt", False)
    cusparselt.library.cache_clear()
    try:
        assert cusparselt.library() is None
    finally:
        cusparselt.library.cache_clear()


@pytest.mark.skipif(cusparselt.library() is None, reason="PyTorch has no cuSPARSELt")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_library_says_why_not() -> None:
    with pytest.raises(RuntimeError, match="cuSPARSELt's cusparseLtInit says: "):
        cusparselt._handle(0)


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.skipif(cusparselt.library() is None, reason="PyTorch has no cuSPARSELt")
@pytest.mark.parametrize(
    ("after", "fused"),
    [
        (nn.ReLU(), True),
        (nn.GELU(approximate="tanh"), False),
        (nn.GELU(), False),
        (nn.Sequential(nn.ReLU(), nn.Sigmoid()), False),
        (nn.Identity(), False),
    ],
)
def test_what_the_library_takes_on(after: nn.Module, fused: bool) -> None:
    found, _ = offered(nn.Sequential(two_four(nn.Conv2d(64, 32, 1)), after, nn.Conv2d(32, 8, 3)), torch.randn(2, 64, 4, 4))
    assert [t.config.fused for t in found] == [True, False][1 - fused :]
