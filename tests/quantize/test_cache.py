"""The file that a calibration is kept in: where it cannot be written or read, and what an edit may not do."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.config import Config
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.quantize.calibration import Calibration, Range, check_writable, read
from torchsmith.quantize.post_training import quantize
from torchsmith.testing.pipeline import Pipeline

MADE = Calibration("a digest", "mse", 3, {"x": Range(-1.0, 2.0, 1.5)}, {"layer": (0.25, -0.5)})


def edited(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_it_is_read_as_it_was_written_and_others_may_read_it(tmp_path: Path) -> None:
    file, plain = tmp_path / "calibration.json", tmp_path / "plain"
    MADE.write(file)
    plain.touch()
    assert read(file, "a digest") == MADE
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # as the user's umask has it


@pytest.mark.parametrize("name", ["folder", "file/calibration.json"])
def test_what_cannot_be_written_is_said_before_anything_is_done(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for write in (check_writable, MADE.write):
        with pytest.raises(InvalidOption, match=f"the calibration cache .*{name} cannot be written: .*; name another cache_file"):
            write(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


def test_asking_leaves_nothing_behind_and_nothing_changed(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    MADE.write(file)
    check_writable(file)
    assert os.listdir(tmp_path) == ["calibration.json"] and read(file, "a digest") == MADE


def test_a_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the calibration cache .* cannot be read: Is a directory"):
        read(tmp_path, "a digest")


def test_several_writers_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    calibrations = [dataclasses.replace(MADE, corrections={f"layer{n}": (float(n),) * 1000}) for n in range(8)]
    threads = [threading.Thread(target=made.write, args=(file,)) for made in calibrations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(file, "a digest") in calibrations and os.listdir(tmp_path) == ["calibration.json"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["ranges"]["x"].update(threshold=0.0), "a threshold of 0 for numbers from -1 to 2"),
        (lambda c: c["ranges"]["x"].update(least=3.0), "a range of"),
        (lambda c: c["corrections"].update(layer=[0.25, float("nan")]), "corrections that are not finite"),
        (lambda c: c["corrections"].update(layer=["much"]), "ValueError"),
        (lambda c: c["shares"].update(x=[1.0, 0.0]), "shares that are not positive"),
        (lambda c: c["roundings"].update(w={"shape": [2], "data": "AAAA"}), "is damaged"),
    ],
)
def test_edits_that_make_no_sense_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str) -> None:
    file = tmp_path / "calibration.json"
    MADE.write(file)
    edited(file, change)
    with pytest.raises(InvalidInput, match=f"is damaged: .*{sentence}|{sentence}.*calibrate again"):
        read(file, "a digest")


def test_a_threshold_may_be_set_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    MADE.write(file)
    edited(file, lambda content: content["ranges"]["x"].update(threshold=1.25))
    assert read(file, "a digest").ranges["x"].threshold == 1.25


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.second.weight)
        with torch.no_grad():
            self.first.weight[:, 0] *= 50

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def calibrated(model: nn.Module, calibrator: Any) -> Calibration:
    data = torch.randn(4, 5, 6) * torch.tensor([40.0, 1, 1, 1, 1, 1])
    road = Pipeline(model.eval(), data).capture().lower()
    config = Config.from_options(enabled_precisions={torch.int8}, calibrator=calibrator(data)).quantize
    found = quantize(road.lowered, config).calibration
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["corrections"]["first/linear"].pop(), "7 corrections for the 8 channels of first/linear"),
        (lambda c: c["roundings"]["p_first_weight"].update(shape=[6, 8]), r"roundings of \(6, 8\) for the weight of first/linear"),
        (lambda c: c["ranges"].pop("relu"), "has no range for relu; skip_layers or enabled_precisions may have changed"),
    ],
)
def test_lists_of_other_lengths_than_the_models_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    model, file = Small(), tmp_path / "calibration.json"
    calibrated(model, lambda data: DataLoaderCalibrator([data], cache_file=file))
    edited(file, change)
    with pytest.raises(InvalidInput, match=sentence):
        calibrated(model, lambda data: file)


def test_shares_of_other_lengths_are_refused(tmp_path: Path) -> None:
    model, file = Small(), tmp_path / "calibration.json"
    found = calibrated(model, lambda data: DataLoaderCalibrator([data], cache_file=file))
    dataclasses.replace(found, shares={"x": (1.0,) * 5}).write(file)
    with pytest.raises(InvalidInput, match="5 shares for the 6 channels of x"):
        calibrated(model, lambda data: file)


def test_a_cache_that_cannot_be_written_stops_before_the_data_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="cannot be written: it is a folder"):
        calibrated(Small(), lambda data: DataLoaderCalibrator(iter(lambda: pytest.fail("data was read"), 0), cache_file=tmp_path))
