"""`torchsmith bench`: its flags, its files, its JSON. How it measures is tested in tests/bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NETS = str(Path(__file__).parent / "nets.py")
QUICK = ("--batch", "1", "--precision", "f32", "--peers", "eager", "--seconds", "0.1", "--no-memory")


def test_a_table_and_files(cli: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"report{ending}" for ending in (".json", ".md", ".png")]
    result = cli("bench", f"{NETS}:conv", *QUICK, *(arg for file in files for arg in ("-o", file)))
    assert result.exit_code == 0
    assert "torchsmith f32" in result.stdout and "eager f32" in result.stdout
    assert all(file.stat().st_size for file in files)
    assert [row["side"] for row in json.loads(files[0].read_text())["rows"]] == ["eager", "torchsmith"]


def test_json_alone_on_standard_output(cli: Any) -> None:
    report = json.loads(cli("bench", f"{NETS}:conv", f"{NETS}:fixed", *QUICK, "--json").stdout)
    assert len({row["model"] for row in report["rows"]}) == 2
    assert report["command"].startswith("torchsmith bench")


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--batch", "one", "--batch one: it takes whole numbers"),
        ("--precision", "f33", "did you mean 'f32'?"),
        ("--peers", "egaer", "did you mean 'eager'?"),
        ("-o", "report.txt", "a report cannot be written to report.txt"),
    ],
)
def test_what_is_not_known_is_said_before_anything_is_timed(cli: Any, flag: str, value: str, sentence: str) -> None:
    result = cli("bench", f"{NETS}:broken", flag, value)
    assert result.exit_code == 2 and sentence in result.stderr
