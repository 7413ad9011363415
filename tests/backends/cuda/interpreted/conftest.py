"""These tests run kernels in Triton's interpreter, which must be chosen before Triton is imported: `test_interpreted.py` runs
them, in a few processes, with TRITON_INTERPRET=1. By hand: `TRITON_INTERPRET=1 pytest tests/backends/cuda/interpreted`."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
