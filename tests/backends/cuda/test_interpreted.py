"""The files of `interpreted/`, in a few processes of their own with Triton's interpreter on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
PROCESSES = 6  # each spends seconds on imports before its first test; with fewer, one could end long after the others
SHARES = [FILES[start::PROCESSES] for start in range(PROCESSES)]


@pytest.mark.parametrize("files", SHARES, ids=lambda files: "-".join(file.stem.removeprefix("test_") for file in files))
def test_kernels_in_the_interpreter(files: list[Path]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
