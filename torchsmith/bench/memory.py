"""The peak memory of one side, measured in a process of its own that builds it and runs it a few times.

`python -m torchsmith.bench.memory MODEL BATCH PRECISION SIDE THREADS` prints {"peak_mb": ...} as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

CALLS = 3
LIMIT_SECONDS = 600


def peak_memory_mb(model: str, batch: int, precision: str, side: str) -> float | None:
    """MiB of a fresh process that makes `model`, builds `side` and calls it; None where that process fails."""
    command = [sys.executable, "-m", __name__, model, str(batch), precision, side, str(torch.get_num_threads())]
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_SECONDS, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    peak: float = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
    return peak


def own_peak_mb() -> float:
    """MiB of this process's largest resident set since it started."""
    # not ru_maxrss where it can be helped: Linux lets a child start from the peak of the process that made it
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    import resource  # POSIX has it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(model_name: str, batch: str, precision: str, side: str, threads: str) -> None:
    from torchsmith.bench.int8_sides import INT8, QUANTIZERS, calibrated
    from torchsmith.bench.models import load
    from torchsmith.bench.sides import BUILDERS, import_packages

    torch.set_num_threads(int(threads))
    model = load(model_name)
    inputs = model.inputs(int(batch), 0)
    with torch.no_grad():
        import_packages(side)
        builder = calibrated(QUANTIZERS[side], model, int(batch)) if precision == INT8 else BUILDERS[side]
        built = builder(model.module(int(batch)), inputs, precision)
        call = built.bind(inputs)
        for _ in range(CALLS):
            call()
    print(json.dumps({"peak_mb": round(own_peak_mb(), 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
