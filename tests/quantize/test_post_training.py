"""Post-training quantization at the level of exported programs: where the ops stand, and what the program then computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.config import Config
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.quantize.placement import place
from torchsmith.quantize.post_training import Quantized, quantize
from torchsmith.testing.compare import relative_error
from torchsmith.testing.pipeline import Pipeline

aten = torch.ops.aten
INT8 = {torch.float32, torch.int8}


class Gate(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A residual block with a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.gate = nn.Conv2d(channels, channels, 3, padding=1), Gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.gate(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.block, self.last, self.head = Block(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.pool(torch.relu(self.stem(x))))
        given: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return given


def batches(count: int = 3, shape: Sequence[int] = (4, 3, 8, 8)) -> list[Tensor]:
    return [torch.randn(*shape) for _ in range(count)]


def quantized(model: nn.Module, data: Any, *inputs: Tensor, **options: Any) -> Quantized:
    """The model after the quantize stage."""
    road = Pipeline(model.eval(), *(inputs or (torch.randn(4, 3, 8, 8),))).capture().lower()
    return quantize(road.lowered, Config.from_options(enabled_precisions=INT8, calibrator=data, **options).quantize)


def marks(found: Quantized) -> dict[str, set[str]]:
    """The users of every fake-quantized value, by the value's name."""
    targets = (aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_channel_affine.default)
    return {n.args[0].name: {u.name for u in n.users} for n in found.program.graph.nodes if n.target in targets}


def test_int8_flows_through_pooling_and_both_branches_of_a_residual_and_gates_stay_float() -> None:
    model = Net()
    found = quantized(model, batches())
    values = marks(found)
    weights = {name for name in values if "weight" in name}
    assert {"p_block_conv2_weight", "p_last_weight", "p_head_weight"} <= weights
    assert len(weights) == 4 and not any("gate" in name or "stem" in name for name in weights)  # conv1's is folded
    activations = {name: users for name, users in values.items() if name not in weights}
    assert "x" not in activations  # pixels
    assert activations["relu"] == {"max_pool2d"}  # moved up from the block's input
    assert activations["mul"] == {"add"}
    assert activations["relu_3"] == {"conv2d_5"}
    assert found.calibration is not None and set(found.calibration.ranges) >= {"block.gate/mul"}


def test_grids_are_unsigned_behind_relu_and_symmetric_elsewhere() -> None:
    found = quantized(Net(), batches())
    grids = {
        n.args[0].name: n.args[2:] for n in found.program.graph.nodes if n.target is aten.fake_quantize_per_tensor_affine.default
    }
    assert grids["relu"] == (0, 0, 255)
    assert grids["mul"] == (0, -128, 127)
    channels = [n for n in found.program.graph.nodes if n.target is aten.fake_quantize_per_channel_affine.default]
    assert {n.args[3:] for n in channels} == {(0, -127, 127)}


def test_the_quantized_program_computes_nearly_the_same() -> None:
    model, x = Net(), torch.randn(4, 3, 8, 8)
    found = quantized(model, batches())
    with torch.no_grad():
        assert 0 < relative_error(found.program.module()(x), model(x)) < 0.03


def test_the_lowered_program_stays_as_it_is() -> None:
    road = Pipeline(Net().eval(), torch.randn(4, 3, 8, 8)).capture().lower()
    before = road.lowered.program.graph.python_code("self").src
    constants = set(road.lowered.program.constants)
    quantize(road.lowered, Config.from_options(enabled_precisions=INT8, calibrator=batches()).quantize)
    assert road.lowered.program.graph.python_code("self").src == before
    assert set(road.lowered.program.constants) == constants


def test_origins_are_those_of_the_layers() -> None:
    found = quantized(Net(), batches())
    for node in found.program.graph.nodes:
        if "fake_quantize" in str(node.target):
            assert "nn_module_stack" in node.meta and isinstance(node.meta["val"], Tensor)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.c(torch.cat((torch.relu(self.a(x)), 10 * torch.relu(self.b(x))), 1))
        return given


def test_what_is_concatenated_shares_a_scale() -> None:
    found = quantized(Joined(), batches(shape=(4, 6, 8, 8)), torch.randn(4, 6, 8, 8))
    grids = {
        n.args[0].name: n.args[1] for n in found.program.graph.nodes if n.target is aten.fake_quantize_per_tensor_affine.default
    }
    assert set(grids) == {"x", "relu", "mul"} and grids["relu"] == grids["mul"] != grids["x"]


def test_products_with_constants_and_transposed_convolutions_are_quantized_along_their_output_channels() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10))
            self.up = nn.ConvTranspose2d(10, 7, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addmm(self.bias, x, self.weight) + x @ self.weight
            given: Tensor = self.up(y.reshape(-1, 10, 1, 1).expand(-1, 10, 2, 2))
            return given

    model, x = Products(), torch.randn(4, 6)
    found = quantized(model, [torch.randn(4, 6) for _ in range(4)], x)
    channels = [n for n in found.program.graph.nodes if n.target is aten.fake_quantize_per_channel_affine.default]
    assert [n.args[3] for n in channels] == [1, 1]  # the two products share their weight
    assert [tuple(n.args[1].meta["val"].shape) for n in channels] == [(10,), (7,)]
    with torch.no_grad():
        assert 0 < relative_error(found.program.module()(x), model(x)) < 0.03


@pytest.mark.parametrize(
    ("pattern", "floats"), [("block.conv1", 1), ("block", 2), ("block.*", 2), ("*", 4), ("head", 1), ("block.conv?", 2)]
)
def test_skipped_layers_stay_float(pattern: str, floats: int) -> None:
    found = quantized(Net(), batches(), skip_layers={pattern})
    assert sum("weight" in name for name in marks(found)) == 4 - floats


def test_a_skipped_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"skip_layers names 'blok.conv1'.*block.conv1"):
        quantized(Net(), batches(), skip_layers={"blok.conv1"})


def test_bias_correction_takes_the_mean_of_the_error_off() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8, bias=False))
    data = [torch.rand(256, 16) for _ in range(4)]
    found = quantized(model, data, data[0])
    with torch.no_grad():
        error = torch.cat([found.program.module()(x) - model(x) for x in data])
    assert float(error.mean(0).abs().max()) < 0.1 * float(error.std(0).min())


def test_int8_and_calibrators_need_each_other() -> None:
    lowered = Pipeline(Net().eval(), torch.randn(4, 3, 8, 8)).capture().lower().lowered
    with pytest.raises(InvalidOption, match="pass calibrator= with typical inputs"):
        quantize(lowered, Config.from_options(enabled_precisions=INT8).quantize)
    with pytest.raises(
        InvalidOption, match=r"a calibrator is for torch\.int8 and torch\.float8_e4m3fn; add one to enabled_precisions"
    ):
        quantize(lowered, Config.from_options(calibrator=batches()).quantize)
    assert quantize(lowered, Config().quantize).program is lowered.program
    once = quantize(lowered, Config.from_options(enabled_precisions=INT8, calibrator=batches()).quantize)
    with pytest.raises(InvalidOption, match="leave the calibrator out"):
        quantize(type(lowered)(once.program), Config.from_options(enabled_precisions=INT8, calibrator=batches()).quantize)
    assert quantize(type(lowered)(once.program), Config.from_options(enabled_precisions=INT8).quantize).program is once.program


def test_values_inside_that_are_not_finite_are_refused_by_batch_and_layer() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            given: Tensor = self.head(torch.log(x))
            return given

    with pytest.raises(InvalidInput, match="calibration batch 1 makes log infinite or NaN"):
        quantized(Log(), [torch.ones(1, 4), torch.zeros(1, 4)], torch.ones(1, 4))


def test_weights_that_are_not_finite_are_refused_by_layer() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(InvalidInput, match="the weight of head/linear has NaN"):
        quantized(model, batches())


def test_channels_of_zeros_and_inputs_of_zeros_are_no_trouble() -> None:
    model = Net()
    with torch.no_grad():
        model.last.weight[0] = 0
    found = quantized(model, [torch.zeros(4, 3, 8, 8)])
    with torch.no_grad():
        assert torch.isfinite(found.program.module()(torch.zeros(4, 3, 8, 8))).all()


def test_attention_keeps_its_products_of_activations() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    placement = place(Pipeline(model, torch.randn(2, 5, 16)).capture().lower().lowered.program)
    assert len(placement.layers) == 4
    assert not any("attention" in u.name or "softmax" in u.name for p in placement.points for u in p.users)


def test_depthwise_layers_stay_float_behind_a_float_layer_and_zeros_around_pictures_pass_int8_through() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.ReLU6()),
        *(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)),
    )
    found = quantized(model, batches())
    values = marks(found)
    assert {name for name in values if "weight" in name} == {"p_4_weight", "p_7_weight", "p_8_weight"}
    (padded,) = (users for name, users in values.items() if any("pad" in user for user in users))
    assert len(padded) == 1
    with torch.no_grad():
        x = torch.randn(4, 3, 8, 8)
        assert 0 < relative_error(found.program.module()(x), model(x)) < 0.03


def test_data_that_is_one_number_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"the calibration data are constant \(3\), so that ranges fit that number only"):
        quantized(model, [torch.full((2, 4), 3.0)] * 2, torch.randn(2, 4))


def test_a_model_without_a_layer_for_it_is_told() -> None:
    with pytest.warns(
        UserWarning, match="no layer of the model to compute in eight bits: no convolution and no product has a const"
    ):
        quantized(nn.ReLU(), [torch.randn(2, 4)], torch.randn(2, 4))
    with pytest.warns(UserWarning, match="most often because it takes 3 channels, as of pixels"):
        quantized(nn.Conv2d(3, 4, 1), batches(), batches()[0])


def test_inputs_that_the_model_itself_does_not_take_are_told_by_batch_and_op() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.last(self.words(tokens))  # type: ignore[no-any-return]

    good = torch.tensor([[1, 2, 3]])
    with pytest.raises(InvalidInput, match=r"calibration batch 1 fails in words/embedding \(.*\): index out of range") as caught:
        quantized(Embedded(), [good, good + 10], good)
    assert "While executing" not in str(caught.value)


class Loud(nn.Module):
    """What is concatenated with numbers `gain` times as large is also convolved, pooled or not."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.first(x))
        z = self.second(y)
        return self.third(torch.cat([y, z * self.gain], 1)), z


@pytest.mark.parametrize("gain", [1.0, 300.0])
def test_what_is_concatenated_with_larger_numbers_has_its_own_scale_elsewhere(gain: float) -> None:
    model, data = Loud(gain).eval(), batches(4, (4, 6, 8, 8))
    found = quantized(model, data, data[0])
    assert found.calibration is not None
    assert ("relu alone" in found.calibration.ranges) == (gain > 1)
    with torch.no_grad():
        for given, wanted in zip(found.program.module()(data[0]), model(data[0]), strict=True):
            assert relative_error(given, wanted) < 0.03


def test_budgets_know_of_both_scales(tmp_path: Path) -> None:
    model, data, file = Loud(300.0).eval(), batches(4, (4, 6, 8, 8)), tmp_path / "calibration.json"
    calibrator = DataLoaderCalibrator(data, cache_file=file, use_cache=True)
    found = [quantized(model, calibrator, data[0], accuracy_budget=0.5) for _ in range(2)]
    assert found[0].calibration == found[1].calibration and found[0].budgeted is not None
    with torch.no_grad():
        (given, wanted) = (program.module()(data[0]) for program in (found[1].program, found[0].program))
    torch.testing.assert_close(given, wanted, rtol=0, atol=0)
    assert found[0].budgeted.assignment.simulated.error < 0.03
