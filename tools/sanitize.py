"""The kernels' GPU tests under NVIDIA's compute-sanitizer, where there are a GPU and the tool.

    python tools/sanitize.py [memcheck|racecheck|initcheck|synccheck] [more arguments for pytest]

Each kernel access outside its memory fails the run. PyTorch's allocator hands out parts of larger pieces, which would hide
accesses to a neighbour's memory, so it is switched off.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/backends/cuda/on_gpu/test_gpu_kernels.py", "tests/backends/cuda/on_gpu/test_gpu_quantized.py")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def sanitizer() -> str | None:
    """compute-sanitizer's path: the one on PATH, else where CUDA's toolkit has it."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(usual) if usual.exists() else None)


def main(arguments: list[str]) -> int:
    import torch

    tool = arguments.pop(0) if arguments and arguments[0] in TOOLS else "memcheck"
    found = sanitizer()
    if found is None or not torch.cuda.is_available():
        missing = "a GPU" if found else "compute-sanitizer, which comes with CUDA's toolkit"
        print(f"There is nothing to do: this machine lacks {missing}.", file=sys.stderr)
        return 2
    tests = [argument for argument in arguments if argument.startswith("tests/")] or list(TESTS)
    options = [argument for argument in arguments if not argument.startswith("tests/")] or ["-x"]
    # cuda-bindings asks the driver for functions that it may not have, which is no error of a kernel's
    checks = ["--leak-check", "no", "--report-api-errors", "no"] if tool == "memcheck" else []
    command = [found, "--tool", tool, *checks, "--error-exitcode", "9", "--target-processes", "application-only"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run([*command, sys.executable, "-m", "pytest", "-q", *options, *tests], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
