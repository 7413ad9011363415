"""Ranges from calibration data, and the file that they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchsmith
from torchsmith.capture import NotConvertible
from torchsmith.config import Config
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.ptq import CacheCalibrator, CalibrationAlgo, DataLoaderCalibrator
from torchsmith.quantize import post_training
from torchsmith.quantize.post_training import Quantized, no_calibrator, quantize
from torchsmith.testing.pipeline import Pipeline


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def quantized(model: nn.Module, calibrator: Any, **options: Any) -> Quantized:
    road = Pipeline(model.eval(), torch.randn(2, 6, 6, 6)).capture().lower()
    given = {"enabled_precisions": {torch.float32, torch.int8}, "calibrator": calibrator, **options}
    return quantize(road.lowered, Config.from_options(**given).quantize)


def loader(count: int = 6) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(torch.randn(count, 6, 6, 6), torch.arange(count)), batch_size=2)


def outputs(found: Quantized) -> Tensor:
    with torch.no_grad():
        given: Tensor = found.program.module()(torch.ones(2, 6, 6, 6))
    return given


def test_the_cache_gives_the_same_program_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = Small(), tmp_path / "calibration.json"
    first = quantized(model, DataLoaderCalibrator(loader(), CalibrationAlgo.MSE, file))
    monkeypatch.setattr(post_training, "_measured", lambda *_: pytest.fail("it calibrated again"))
    by_cache = quantized(model, CacheCalibrator(file))
    again = quantized(model, DataLoaderCalibrator([], "mse", cache_file=file, use_cache=True))
    by_path = quantized(model, file)
    for other in (by_cache, again, by_path):
        torch.testing.assert_close(outputs(other), outputs(first), rtol=0, atol=0)
        assert other.calibration == first.calibration
    assert os.listdir(tmp_path) == ["calibration.json"]


def test_the_cache_is_readable(tmp_path: Path) -> None:
    file = tmp_path / "new" / "calibration.json"
    quantized(Small(), DataLoaderCalibrator(loader(), algo=CalibrationAlgo.MINMAX_CALIBRATION, cache_file=file))
    content = json.loads(file.read_text())
    assert content["format"] == "torchsmith calibration" and content["version"] == 2
    assert content["torchsmith"] == torchsmith.__version__
    assert content["algorithm"] == "minmax" and content["batches"] == 3
    assert list(content["ranges"]) == ["x", "relu"]
    assert content["ranges"]["relu"]["least"] == 0.0
    assert content["ranges"]["relu"]["threshold"] == content["ranges"]["relu"]["greatest"] > 0
    assert {name: len(row) for name, row in content["corrections"].items()} == {"first/conv2d": 8, "second/conv2d_1": 3}
    assert max(map(len, file.read_text().splitlines())) < 500


def test_a_cache_that_is_not_there_yet_is_written(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    quantized(Small(), DataLoaderCalibrator(loader(), cache_file=file, use_cache=True))
    assert file.exists()


def test_a_cache_of_another_model_of_other_weights_or_algorithm_is_refused(tmp_path: Path) -> None:
    model, file = Small(), tmp_path / "calibration.json"
    quantized(model, DataLoaderCalibrator(loader(), cache_file=file))
    with pytest.raises(InvalidInput, match="is the calibration of another model, or of this one with other weights"):
        quantized(Small(), CacheCalibrator(file))
    with pytest.raises(InvalidInput, match="was calibrated by 'mse', and the calibrator asks for 'minmax'"):
        quantized(model, DataLoaderCalibrator(loader(), "minmax", file, use_cache=True))
    skipping = tmp_path / "skipping.json"
    quantized(model, DataLoaderCalibrator(loader(), cache_file=skipping), skip_layers={"second"})
    with pytest.raises(InvalidInput, match=r"has no range for relu; skip_layers or enabled_precisions may have changed"):
        quantized(model, CacheCalibrator(skipping))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "not JSON", "is no calibration cache of torchsmith"),
        (lambda text: text[: len(text) // 2], "is no calibration cache of torchsmith"),
        (lambda text: "[]", "is no calibration cache of torchsmith"),
        (lambda text: text.replace('"version": 2', '"version": 9'), "in format 9, and this version reads format 2"),
        (lambda text: text.replace('"threshold": ', '"threshold": -'), "is damaged: ValueError"),
        (lambda text: text.replace('"threshold"', '"thresh"'), "is damaged: KeyError"),
        (lambda text: text.replace('"least": 0.0', '"least": NaN'), "is damaged: ValueError"),
    ],
)
def test_a_cache_that_is_foreign_or_damaged_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    model, file = Small(), tmp_path / "calibration.json"
    quantized(model, DataLoaderCalibrator(loader(), cache_file=file))
    file.write_text(change(file.read_text()))
    with pytest.raises(InvalidInput, match=sentence):
        quantized(model, CacheCalibrator(file))


def test_a_calibration_that_fails_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("what was there")

    def data() -> Iterator[Tensor]:
        yield torch.randn(2, 6, 6, 6)
        raise RuntimeError("the disk is gone")

    with pytest.raises(InvalidInput, match="reading calibration batch 1 failed: RuntimeError: the disk is gone"):
        quantized(Small(), DataLoaderCalibrator(data(), cache_file=file))
    assert file.read_text() == "what was there" and os.listdir(tmp_path) == ["calibration.json"]


def test_a_cache_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such calibration cache"):
        quantized(Small(), CacheCalibrator(tmp_path / "none.json"))


def test_options_of_calibrators_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        InvalidOption, match=r"is no calibration algorithm; torchsmith\.ptq\.CalibrationAlgo has ENTROPY_CALIBRATION"
    ):
        DataLoaderCalibrator([], "best")
    with pytest.raises(InvalidOption, match="two names of one option"):
        DataLoaderCalibrator([], CalibrationAlgo.MSE, algo="minmax")
    with pytest.raises(InvalidOption, match="needs a cache_file"):
        DataLoaderCalibrator([], use_cache=True)
    with pytest.raises(InvalidOption, match="calibrator is a int; pass a DataLoader"):
        quantized(Small(), 3)
    with pytest.raises(InvalidOption, match="it takes a set of module paths"):
        Config.from_options(skip_layers="first")


def test_the_names_are_those_of_torch_tensorrt() -> None:
    names = {"ENTROPY_CALIBRATION", "ENTROPY_CALIBRATION_2", "LEGACY_CALIBRATION", "MINMAX_CALIBRATION", "MSE"}
    assert {algo.name for algo in torchsmith.ptq.CalibrationAlgo} == names
    calibrator = torchsmith.ptq.DataLoaderCalibrator(
        loader(), cache_file="x.json", use_cache=False, algo_type=CalibrationAlgo.MINMAX_CALIBRATION, device=torch.device("cpu")
    )
    assert repr(calibrator) == "DataLoaderCalibrator(DataLoader, MINMAX_CALIBRATION, cache_file='x.json', use_cache=False)"
    assert repr(torchsmith.ptq.CacheCalibrator("x.json", CalibrationAlgo.MSE)) == "CacheCalibrator('x.json')"


def test_a_model_that_is_compiled_in_parts_takes_no_calibrator() -> None:
    why = NotConvertible("it keeps state")
    with pytest.raises(InvalidOption, match="only a model that is one program can be calibrated, and this one is not: it keeps"):
        no_calibrator(Config.from_options(calibrator=[torch.randn(2, 3)]).quantize, why)
    no_calibrator(Config().quantize, why)
