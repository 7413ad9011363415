"""The road of a benchmark, with sides made for the purpose in torchsmith's place."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from torchsmith.bench import run
from torchsmith.bench.int8_sides import CALIBRATION_ITEMS, QUANTIZERS, calibration_data
from torchsmith.bench.models import Inputs, Model, load
from torchsmith.bench.report import Report
from torchsmith.bench.run import Options, compare, run_bench
from torchsmith.bench.sides import BUILDERS, Absent, Builder, Built, eager
from torchsmith.errors import InvalidInput, InvalidOption, VerificationError

NETS = Path(__file__).parent / "nets.py"
QUICK = Options(batches=(1,), precisions=("f32",), peers=("eager",), seconds=0.1, memory=False)


def wrong(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    right = eager(module, inputs, precision)
    return dataclasses.replace(right, bind=lambda given: lambda: right.bind(given)() * 1.01)


def stale(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    """Right for the inputs it was built with, whatever it is given."""
    right = eager(module, inputs, precision)
    return dataclasses.replace(right, bind=lambda given: right.bind(inputs))


def not_a_number(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    right = eager(module, inputs, precision)
    return dataclasses.replace(right, bind=lambda given: lambda: right.bind(given)() * float("nan"))


def broken(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    raise RuntimeError("no kernel for this\nand a long trace")


def breaks_when_called(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    def call() -> None:
        raise RuntimeError("no kernel at run time")

    return Built(lambda given: call, "")


def absent(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    raise Absent("it is on holiday")


def bench(net: str = "conv", options: Options = QUICK, ours: Builder = eager, **peers: Builder) -> Report:
    builders: Mapping[str, Builder] = {"eager": eager, **peers, "torchsmith": ours}
    return compare([load(f"{NETS}:{net}")], dataclasses.replace(options, peers=("eager", *peers)), builders)


@pytest.mark.parametrize("ours", [wrong, stale, not_a_number])
def test_a_wrong_output_of_ours_stops_the_report(ours: Builder) -> None:
    with pytest.raises(VerificationError, match=r"torchsmith is wrong on .*conv, batch 1, f32: its relative error"):
        bench(ours=ours)


@pytest.mark.parametrize("peer", [wrong, stale, not_a_number])
def test_a_wrong_peer_is_shown_and_not_timed(peer: Builder) -> None:
    report = bench(peer=peer)
    wrong_row, ours = report.rows[1], report.rows[-1]
    assert wrong_row.side == "peer" and wrong_row.why.startswith("wrong: relative error") and wrong_row.stats is None
    assert ours.stats is not None and report.speedup(ours) is not None


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (broken, "RuntimeError: no kernel for this"),
        (breaks_when_called, "RuntimeError: no kernel at run time"),
        (absent, "it is on holiday"),
    ],
)
def test_a_peer_that_fails_shows_its_reason(peer: Builder, why: str) -> None:
    row = bench(peer=peer).rows[1]
    assert row.why == why and row.error is None and row.stats is None


def test_our_own_failure_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="no kernel for this"):
        bench(ours=broken)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsmith.bench.sides.PACKAGES", {"peer": ("nowhere_to_be_found.inside",)})
    assert bench(peer=eager).rows[1].why == "it needs the package nowhere_to_be_found; pip install nowhere_to_be_found"


def test_both_precisions_and_batches_are_compared_in_one_report() -> None:
    said: list[tuple[str, float]] = []
    options = dataclasses.replace(QUICK, batches=(1, 3), precisions=("bf16", "f32"))
    builders = {"eager": eager, "torchsmith": eager}
    report = compare([load(f"{NETS}:conv")], options, builders, say=lambda text, share: said.append((text, share)))
    assert {(r.batch, r.precision) for r in report.rows} == {(1, "f32"), (1, "bf16"), (3, "f32"), (3, "bf16")}
    row = report.rows[-1]
    assert row.items == 3 and row.stats is not None and row.stats.calls > 10
    assert row.items_per_second == pytest.approx(3e3 / row.stats.median_ms)
    assert row.error is not None and row.tolerance is not None and 1e-4 < row.error <= row.tolerance
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert any("timing 4 sides in turns" in text for text, _ in said)


def test_eager_f32_is_measured_even_where_only_bf16_was_asked_for() -> None:
    report = bench(options=dataclasses.replace(QUICK, precisions=("bf16",)))
    assert [(r.side, r.precision) for r in report.rows] == [("eager", "f32"), ("eager", "bf16"), ("torchsmith", "bf16")]
    assert report.speedup(report.rows[-1], precision="f32") is not None


def test_inputs_without_a_batch_are_measured_once() -> None:
    report = bench("pair", dataclasses.replace(QUICK, batches=(1, 8)))
    assert [(r.batch, r.items) for r in report.rows] == [(3, 3), (3, 3)]


def test_the_model_is_not_changed_by_any_side() -> None:
    model = load(f"{NETS}:conv")
    module = model.module(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    held = Model(model.name, lambda batch: module, model.inputs)
    compare([held], dataclasses.replace(QUICK, precisions=("bf16",)), {"eager": eager, "torchsmith": eager})
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_a_model_that_gives_infinity_is_refused() -> None:
    with pytest.raises(InvalidInput, match="NaN or infinity in float64 already"):
        bench("infinite")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precisions": ["fp32"]}, "no precision 'fp32'; did you mean 'f32'"),
        ({"peers": ["openvin"]}, "no peer 'openvin'; did you mean 'openvino'"),
        ({"peers": ["zzz"]}, "no peer 'zzz'; it takes eager, torchscript"),
        ({"batches": [0]}, "batch '0' makes no sense"),
        ({"model": ""}, "bench needs a model"),
    ],
)
def test_unknown_names_get_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        run_bench(**{"model": f"{NETS}:conv", "progress": False, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("net", ["conv", "pair"])
def test_the_real_peers_are_right(net: str) -> None:
    peers = tuple(name for name in BUILDERS if name not in ("torchsmith", "inductor"))
    options = dataclasses.replace(QUICK, peers=peers, precisions=("f32", "bf16"))
    report = compare([load(f"{NETS}:{net}")], options, {**BUILDERS, "torchsmith": eager})
    untimed = {(r.side, r.precision): r.why for r in report.rows if r.stats is None}
    assert untimed == {("onnxruntime", "bf16"): "ONNX Runtime's CPU kernels compute in f32, not in bf16"}, untimed


def test_no_compiler_is_a_reason_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("nowhere-to-be-found",))
    row = bench(inductor=BUILDERS["inductor"]).rows[1]
    assert "compiler" in row.why.lower() and row.stats is None, row.why


def test_in_int8_the_sides_that_quantize_are_compared_beside_eager_f32() -> None:
    seen: list[int] = []

    def quantizer(module: nn.Module, inputs: Inputs, data: Sequence[Inputs]) -> Built:
        seen.append(sum(given.items for given in data))
        return eager(module, inputs, "f32")

    options = dataclasses.replace(QUICK, batches=(3,), precisions=("f32", "int8"), peers=("eager", "nncf"))
    quantizers = {"torchsmith": quantizer, "nncf": quantizer}
    report = compare([load(f"{NETS}:conv")], options, {"eager": eager, "torchsmith": eager}, quantizers=quantizers)
    expected = [("f32", "eager"), ("f32", "torchsmith"), ("int8", "nncf"), ("int8", "torchsmith")]
    assert [(r.precision, r.side) for r in report.rows] == expected
    assert len(seen) == 2 and all(CALIBRATION_ITEMS <= count < CALIBRATION_ITEMS + 3 for count in seen), seen
    ours = report.rows[-1]
    assert report.speedup(ours, over="nncf") is not None and ours.tolerance == 0.25


def test_what_outputs_are_checked_on_is_not_calibrated_with() -> None:
    model = load(f"{NETS}:conv")
    checked = [model.inputs(2, seed).args[0] for seed in run.CHECK_SEEDS]
    data = calibration_data(model, 2)
    assert len(data) == CALIBRATION_ITEMS // 2
    assert not any(torch.equal(given.args[0], tensor) for given in data for tensor in checked)


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="NNCF is not installed; pip install nncf")
@pytest.mark.parametrize("net", ["conv", "images", "scaled"])
def test_both_quantizers_round_a_little(net: str) -> None:
    options = dataclasses.replace(QUICK, precisions=("int8",), peers=("nncf",))
    report = compare([load(f"{NETS}:{net}")], options, BUILDERS)
    found = {row.side: row for row in report.rows if row.precision == "int8"}
    assert set(found) == set(QUANTIZERS), report.rows
    for row in found.values():
        assert not row.why and row.error is not None and 1e-4 < row.error < 0.1, row
    assert "calibrated with" in found["nncf"].note


def test_where_nncf_is_missing_its_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsmith.bench.sides.PACKAGES", {"nncf": ("nncf_of_nowhere",)})
    options = dataclasses.replace(QUICK, precisions=("int8",), peers=("nncf",))
    report = compare([load(f"{NETS}:images")], options, BUILDERS)
    row = next(row for row in report.rows if row.side == "nncf")
    assert row.why == "it needs the package nncf_of_nowhere; pip install nncf_of_nowhere" and row.stats is None
