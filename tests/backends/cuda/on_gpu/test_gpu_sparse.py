"""Sparse tensor cores inside engines: cuSPARSELt and CUTLASS are right, captured into a graph, and compete with dense tactics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.on_gpu.nets import BFLOAT, HALF, Vit, double, error, fast, images, made, needs_gpu, right
from torchsmith.backends import target_of
from torchsmith.backends.cuda import cusparselt, tactics
from torchsmith.backends.cuda.plan import CallStep
from torchsmith.backends.cuda.sparse import (
    CUSPARSELT,
    CUTLASS,
    SparseIntegerLinear,
    SparseLinear,
    after,
    has_cusparselt,
    has_cutlass,
)
from torchsmith.backends.cuda.tactics import sparse, sparse_int8
from torchsmith.backends.cuda.two_four import packed
from torchsmith.bench import sparse as bench
from torchsmith.bench.sparse_table import PRECISIONS, Product
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.sparsity import two_four_mask

pytestmark = [
    needs_gpu,
    pytest.mark.skipif(not has_cusparselt(), reason="PyTorch was built without cuSPARSELt"),
]
LIMIT = {HALF: 2e-3, BFLOAT: 1.6e-2}


def pruned(rows: int, terms: int, seed: int = 0) -> Tensor:
    weight = torch.randn(rows, terms, generator=torch.Generator().manual_seed(seed)) / terms**0.5
    kept: Tensor = weight * two_four_mask(weight)
    return kept


def library_or_skip(library: str) -> None:
    if library == CUTLASS and not has_cutlass():
        pytest.skip("PyTorch's CUTLASS kernels with 2:4 weights are for compute capability 8")


@pytest.mark.parametrize("library", [CUSPARSELT, CUTLASS])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "n", "k"), [((8,), 32, 64), ((2, 196), 96, 128), ((40,), 64, 192)])
def test_a_product(library: str, dtype: torch.dtype, biased: bool, rows: tuple[int, ...], n: int, k: int) -> None:
    library_or_skip(library)
    op, weight = SparseLinear(library, dtype, n, k), pruned(n, k).to(dtype)
    x, bias = torch.randn(*rows, k, device="cuda", dtype=dtype), torch.randn(n, device="cuda", dtype=dtype)
    stored = packed(weight)
    y = op.reference(x, op.prepared(stored.cuda()), *([bias] * biased))
    wanted = F.linear(x.cpu().double(), weight.double(), bias.cpu().double() if biased else None)
    assert y.is_contiguous() and y.dtype == dtype and error(y.cpu(), wanted) < LIMIT[dtype]
    torch.testing.assert_close(op.reference(x.cpu(), stored, *([bias.cpu()] * biased)).double(), wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("library", [CUSPARSELT, CUTLASS])
def test_pictures(library: str) -> None:
    library_or_skip(library)
    op, weight = SparseLinear(library, HALF, 96, 64, channels_first=True), pruned(96, 64).half()
    x = torch.randn(8, 64, 7, 5, device="cuda", dtype=HALF).contiguous(memory_format=torch.channels_last)
    y = op.reference(x, op.prepared(packed(weight).cuda()))
    wanted = F.conv2d(x.cpu().double(), weight.double()[:, :, None, None])
    assert y.is_contiguous(memory_format=torch.channels_last) and error(y.cpu(), wanted) < LIMIT[HALF]


@pytest.mark.parametrize("library", [CUSPARSELT, CUTLASS])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 128), (208, 96, 256)])
def test_integers(library: str, m: int, n: int, k: int) -> None:
    library_or_skip(library)
    weight = (pruned(n, k) * 300).round().clamp(-127, 127).to(torch.int8)
    x = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    op = SparseIntegerLinear(library, torch.int32, n, k)
    y = op.reference(x.cuda(), op.prepared(packed(weight).cuda()))
    assert torch.equal(y.cpu(), op.reference(x, packed(weight)))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_scaled_integers(dtype: torch.dtype) -> None:
    n, k = 96, 256
    weight = (pruned(n, k) * 300).round().clamp(-127, 127).to(torch.int8)
    x = torch.randint(-128, 128, (48, k), dtype=torch.int8)
    scale, bias = torch.rand(n) / 4096, torch.randn(n).to(dtype)
    op = SparseIntegerLinear(CUSPARSELT, dtype, n, k)
    y = op.reference(x.cuda(), op.prepared(packed(weight).cuda()), scale.cuda(), bias.cuda())
    wanted = (x.double() @ weight.double().T) * scale.double() + bias.double()
    assert y.dtype == dtype and error(y.cpu(), wanted) < LIMIT[dtype]


class Net(nn.Module):
    """x: (N, 64, H, W) -> (N, 32). 1×1 convolutions with what follows them, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(64, 64, 3, padding=1)
        self.a, self.b = nn.Conv2d(64, 128, 1), nn.Conv2d(128, 64, 1)
        self.c, self.d = nn.Linear(64, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (self.b(self.a(x).relu()) + x).relu()
        y: Tensor = self.d(F.gelu(self.c(x.mean((2, 3)))))
        return y


def pictures(batch: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(batch, 64, 8, 8, generator=torch.Generator().manual_seed(seed)).cuda()


def sparse_model(kind: type[nn.Module] = Net) -> nn.Module:
    return torchsmith.sparsify(made(kind))


def only(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Any], bool]) -> None:
    """Of the sparse templates' configurations these alone."""
    for template in (sparse.SparseTemplate, sparse_int8.SparseInt8Template):
        given: Callable[..., Sequence[Any]] = template.configs
        monkeypatch.setattr(template, "configs", lambda self, e, given=given: [c for c in given(self, e) if wanted(c)])


@pytest.fixture
def sparse_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch's own op does comes first."""
    only(monkeypatch, lambda config: not config.fused)
    monkeypatch.setattr(
        tactics, "ORDER", (*sorted(tactics.SPARSE), *(name for name in tactics.ORDER if name not in tactics.SPARSE))
    )


def called(module: CompiledModule) -> list[str]:
    (engine,) = module.engines
    steps = engine.runner.plan.variants[0].steps  # type: ignore[attr-defined]
    return [type(s.op).__name__ for s in steps if isinstance(s, CallStep)]


@pytest.mark.usefixtures("sparse_first")
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("library", [CUSPARSELT, CUTLASS])
def test_an_engine(dtype: torch.dtype, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library_or_skip(library)
    only(monkeypatch, lambda config: config.library == library)
    model = sparse_model()
    module = fast(model, [pictures()], dtype)
    assert called(module).count("SparseLinear") >= 3
    for seed in (1, 2, 3):  # the first call runs the steps, the others replay the graph
        right(module(pictures(seed=seed)), model, pictures(seed=seed), dtype=dtype)


@pytest.mark.usefixtures("sparse_first")
def test_a_batch_of_any_size() -> None:
    model = sparse_model()
    batch = torch.export.Dim("batch", min=1, max=9)
    module = fast(model, [torchsmith.Input((batch, 64, 8, 8))])
    assert called(module).count("SparseLinear") >= 2  # rows of pictures are a multiple of 64, those of linear layers of nothing
    for size in (1, 9, 4, 1):
        right(module(pictures(size)), model, pictures(size))


@pytest.mark.usefixtures("sparse_first")
def test_a_saved_engine_lays_its_weights_out_when_it_is_loaded(tmp_path: Path) -> None:
    module = fast(sparse_model(), [pictures()])
    torchsmith.save(module, tmp_path / "model")
    loaded = torchsmith.load(tmp_path / "model")
    torch.testing.assert_close(loaded(pictures()), module(pictures()), rtol=0, atol=0)


@pytest.mark.usefixtures("sparse_first")
def test_an_engine_of_int8() -> None:
    model = sparse_model()
    options: dict[str, Any] = {"enabled_precisions": {HALF, torch.int8}, "tune": False, "require_full_compilation": True}
    data = [pictures(seed=seed) for seed in range(4)]
    module = torchsmith.compile(model, inputs=[pictures()], calibrator=data, **options)
    assert isinstance(module, CompiledModule)
    assert called(module).count("SparseIntegerLinear") >= 1, called(module)
    with tactics.only_dense():
        dense = torchsmith.compile(model, inputs=[pictures()], calibrator=data, **options)
    assert isinstance(dense, CompiledModule)
    assert "SparseIntegerLinear" not in called(dense)
    for seed in (7, 8):
        x = pictures(seed=seed)
        wanted = double(model, x)
        assert error(module(x), wanted) <= 1.1 * error(dense(x), wanted) + 2e-3


# ---- cuSPARSELt's own interface ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("m", "n", "k"), [(8, 32, 64), (392, 96, 128)])
def test_what_follows_in_the_same_kernel(dtype: torch.dtype, residual: bool, activation: str, m: int, n: int, k: int) -> None:
    weight, x = pruned(n, k).to(dtype), torch.randn(m, k, device="cuda", dtype=dtype)
    bias, more = torch.randn(n, device="cuda", dtype=dtype), torch.randn(m, n, device="cuda", dtype=dtype)
    flat = SparseLinear(CUSPARSELT, dtype, n, k).prepared(packed(weight).cuda())
    y = cusparselt.product(flat, x, n, dtype, bias, None, more if residual else None, activation)
    wanted = after(F.linear(x.double(), weight.double().cuda(), bias.double()), more.double() if residual else None, activation)
    assert error(y, wanted) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_integers_with_what_follows(dtype: torch.dtype, activation: str) -> None:
    m, n, k = 208, 96, 256
    weight = (pruned(n, k) * 300).round().clamp(-127, 127).to(torch.int8)
    x = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    scale, bias = torch.rand(n) / 4096, torch.randn(n).to(dtype)
    op = SparseIntegerLinear(CUSPARSELT, dtype, n, k, activation=activation)
    y = op.reference(x.cuda(), op.prepared(packed(weight).cuda()), scale.cuda(), bias.cuda())
    sums = (x.double() @ weight.double().T) * scale.double() + bias.double()
    assert y.dtype == dtype and error(y.cpu(), after(sums, None, activation)) < LIMIT[dtype]


def test_a_refusal_is_the_librarys_own_words() -> None:
    flat = SparseLinear(CUSPARSELT, HALF, 32, 64).prepared(packed(pruned(32, 64).half()).cuda())
    with pytest.raises(RuntimeError, match=r"cuSPARSELt's cusparseLt\w+ says: "):
        cusparselt.product(flat, torch.zeros(8, 60, device="cuda", dtype=HALF), 32, HALF, activation="relu")


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_an_engine_with_what_follows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "ORDER", (*sorted(tactics.SPARSE), *(n for n in tactics.ORDER if n not in tactics.SPARSE)))
    model = sparse_model()
    module = fast(model, [pictures()], dtype)
    (engine,) = module.engines
    steps = engine.runner.plan.variants[0].steps  # type: ignore[attr-defined]
    ops = [s.op for s in steps if isinstance(s, CallStep) and isinstance(s.op, SparseLinear)]
    assert any(op.residual and op.activation == "relu" for op in ops)
    for seed in (1, 2, 3):
        right(module(pictures(seed=seed)), model, pictures(seed=seed), dtype=dtype)


def test_the_bench() -> None:
    products = [Product("a net", "fc", 1, 64, 128, 64)]
    target = target_of("cuda")
    for precision in PRECISIONS:
        (row,) = bench.time_products(products, precision, target)
        assert row.dense_us and row.sparse_us and row.error is not None and not row.against, row


def test_they_compete_with_dense_tactics(tmp_path: Path) -> None:
    model = sparse_model(Vit)
    module = torchsmith.compile(
        model,
        inputs=[images(16)],
        enabled_precisions={HALF},
        timing_cache_path=str(tmp_path / "timings.jsonl"),
        require_full_compilation=True,
    )
    right(module(images(16, seed=4)), model, images(16, seed=4))
    text = (tmp_path / "timings.jsonl").read_text()
    timed = [line for line in text.splitlines() if r"\"template\": \"sparse\"" in line and '"us": null' not in line]
    assert timed, "no sparse tactic was timed"
    assert "wrong" not in "".join(line for line in text.splitlines() if r"\"template\": \"sparse\"" in line)
