"""The worked example of quantization-aware training runs, and its int8 network is as good as the one that was trained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchsmith.target import this_cpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "qat_digits.py"


@pytest.mark.slow
def test_the_example_trains_and_compiles_to_int8() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which carries the digits, is not installed")
    run = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    plain, aware, compiled = (float(figure) for figure in re.findall(r"(\d+\.\d+) %", run.stdout))
    assert plain >= 97 and aware >= plain - 0.4 and compiled >= aware - 0.2, run.stdout
    layers = re.findall(r"(?:Convolution|FullyConnected) in (\w+)", run.stdout)
    assert layers[0] == "f32" and len(layers) == 4, run.stdout
    if "avx2" in this_cpu().features:
        assert set(layers[1:]) <= {"u8", "i8"}, run.stdout
