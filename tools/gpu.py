"""`make gpu`: on a machine with an NVIDIA GPU, the tests that need one, then the benchmark.

    python tools/gpu.py [--no-tests] [what `python -m torchsmith.bench.gpu --help` lists]

Results go to docs/bench/gpu-<date>.json (and .md, .png where matplotlib is there), or to the folder that --out names.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/runtime/test_on_gpu.py", "tests/backends/cuda/on_gpu")


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available():
        print("PyTorch finds no GPU here; `make test` is for machines without one.", file=sys.stderr)
        return 2
    tested = 0 if "--no-tests" in arguments else test()
    arguments = [a for a in arguments if a != "--no-tests"]
    out = [] if "--out" in arguments else ["--out", str(ROOT / "docs" / "bench")]
    from torchsmith.bench.gpu import main as bench

    return bench([*arguments, *out]) or tested


def test() -> int:
    """Run the tests that need a GPU; gives pytest's status, 0 where pytest is not installed."""
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed; the tests are left out.", file=sys.stderr)
        return 0
    files = [name for name in TESTS if (ROOT / name).exists()]
    # one process: tests on one device at the same time would only wait for each other
    serial = ["-n", "0"] if importlib.util.find_spec("xdist") else []
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *serial, *files], cwd=ROOT, env=dict(os.environ)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
