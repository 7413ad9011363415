"""The cuda backend: our own engines for NVIDIA GPUs, sm_80 and up.

An engine is data: a plan of steps, weights, and kernels as machine code (`plan.py`). Reading order: `build.py`, then `fuse/`,
`layout.py`, `tactics/`, `kernels/`, `steps.py`, and for what happens at run time `run.py`.
"""

from torchsmith.backends.cuda.backend import BACKEND

__all__ = ["BACKEND"]
