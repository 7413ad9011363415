"""The table of 2:4 weights: which layers are products, the problems that the tuner times, what is made of its times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.backends.cuda.problems import FakeCompiler, FakeTimer
from torchsmith.backends.cuda import tune
from torchsmith.backends.cuda.timing_cache import Timing, tactic_text
from torchsmith.backends.cuda.tune import is_sparse
from torchsmith.bench import sparse
from torchsmith.bench.machine import this_machine
from torchsmith.bench.sparse_table import PRECISIONS, Product, Table, Timed, Whole, WholeNode, write
from torchsmith.errors import BackendUnavailable
from torchsmith.target import Target

SMALL = [Product("a net", "fc", 2, 64, 128, 64), Product("a net", "head", 1, 64, 1000, 64), Product("a net", "last", 1, 64, 64, 96)]


def test_the_products_of_a_model() -> None:
    found, left = sparse.products_of("resnet26", 2)
    assert found[0] == Product("resnet26", "layer1.0.conv1", 1, 2 * 56 * 56, 64, 64)
    assert found[-1] == Product("resnet26", "fc", 1, 2, 1000, 2048)
    assert len({(p.rows, p.features, p.terms) for p in found}) == len(found)
    assert left["a 1×1 convolution with a stride"] == 3 and sum(p.layers for p in found) + sum(left.values()) == 1 + 8 * 3 + 4 + 1
    assert any(reason.startswith("a k×k convolution") for reason in left)


@pytest.fixture
def with_cusparselt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_cusparselt", True)


@pytest.mark.usefixtures("with_cusparselt")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_product_is_a_problem_with_dense_and_sparse_tactics(precision: str) -> None:
    _, problems = sparse.problems_of(sparse.graph_of(SMALL, precision))
    assert len(problems) == 3 and len(set(problems)) == 3
    offered = [any(map(is_sparse, p.tactics)) for p in problems]
    assert offered == [True, False, True]
    assert all(any(not is_sparse(t) for t in p.tactics) for p in problems)
    assert "these are 1000, 64 and 64" in (problems[1].against_sparse or "")


@pytest.mark.usefixtures("with_cusparselt")
def test_what_was_timed_becomes_a_row() -> None:
    _, (first, *_) = sparse.problems_of(sparse.graph_of(SMALL, "f16"))
    dense = [t for t in first.tactics if not is_sparse(t)]
    (fast,) = [t for t in first.tactics if is_sparse(t)]
    first.found = {tactic_text(t): Timing(10.0 + i, 1e-4) for i, t in enumerate(dense)}
    first.found[tactic_text(fast)] = Timing(8.0, 2e-4)
    row = sparse.timed(SMALL[0], "f16", first)
    assert (row.dense_us, row.sparse_us, row.error, row.gain) == (10.0, 8.0, 2e-4, 1.25) and not row.against
    assert row.sparse == str(fast) and row.dense == str(dense[0] or "PyTorch") and row.others[row.dense] == 10.0
    first.found[tactic_text(fast)] = Timing(None, None, "RuntimeError: no kernel")
    row = sparse.timed(SMALL[0], "f16", first)
    assert row.sparse_us is None and row.gain is None and row.against == f"{fast}: RuntimeError: no kernel"


@pytest.mark.usefixtures("with_cusparselt")
def test_products_are_timed_by_the_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(cost=lambda candidate: 3.0 if is_sparse(candidate.tactic) else 4.0)
    monkeypatch.setattr(sparse, "device_timer", lambda target: timer)
    monkeypatch.setattr(tune, "compile_all", FakeCompiler())
    rows = sparse.time_products(SMALL, "int8", Target("cuda", "sm_90"))
    assert [(r.dense_us, r.sparse_us) for r in rows] == [(4.0, 3.0), (4.0, None), (4.0, 3.0)]
    monkeypatch.setattr(sparse, "device_timer", lambda target: None)
    with pytest.raises(BackendUnavailable, match="there is none here that torchsmith can use"):
        sparse.time_products(SMALL, "f16", Target("cuda", "sm_90"))


def test_the_table(tmp_path: Path) -> None:
    table = Table(this_machine(), "2026-01-02", 128, {"a net": {"the first convolution": 1}})
    table.products = [
        Timed(SMALL[0], "f16", 10.0, "gemm", 8.0, "sparse", 1e-4, "", {}),
        Timed(SMALL[0], "int8", 6.0, "gemm_int8", None, "", None, "too small", {}),
    ]
    op = "Fused[gemm](Convolution(stride=(1, 1), groups=1), Binary[add], Unary[relu])"
    nodes = (
        WholeNode(op, "f16[8, 64]", 3, "sparse", 4.0, 6.0, ""),
        WholeNode("Linear", "f16[8, 3]", 1, "dense", None, 1.0, "small"),
    )
    table.models = [Whole("a net", 128, "f16", 2.0, 1.6, 3, 4, 1e-3, 1e-3, 1e-3, nodes=nodes)]
    write(table, tmp_path / "sparse.json")
    text = (tmp_path / "sparse.md").read_text(encoding="utf-8")
    assert "| a net | fc | 2 | 64 × 128 × 64 | 10.0 | 8.0 | 1.25 | 6.0 | — | — |" in text
    assert "| a net | 128 | f16 | 3 of 4 | 2.000 | 1.600 | 1.250 |  |" in text
    assert "| Convolution, add, relu | f16[8, 64] | 3 | 6.0 | 4.0 | 1.50 | sparse |" in text and "f16[8, 3]" not in text
    assert "Dense in a net: 1 × the first convolution." in text
    read = json.loads((tmp_path / "sparse.json").read_text(encoding="utf-8"))
    assert read["products"][0]["product"]["features"] == 128 and read["models"][0]["sparse_layers"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert sparse.main(["--whole", ""]) == 2
    assert "sparse tensor cores are timed on a GPU, and PyTorch finds none here" in capsys.readouterr().err
