"""Where a measurement was made. Nothing in it names the machine or its user."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

import torch

from torchsmith.target import this_cpu
from torchsmith.version import __version__

PACKAGES = ("torchsmith", "torch", "openvino", "onnxruntime", "timm", "transformers", "numpy", "triton", "nncf")


@dataclass(frozen=True)
class Machine:
    """cpu: the vendor's name; features: the instruction sets that matter. cores: those that this process may use.

    memory_gb: GiB. load: processes that ran or waited to, over the last minute. gpu: its name and driver, where it was measured.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    threads: int
    memory_gb: float
    system: str
    python: str
    packages: dict[str, str]
    load: float = 0.0
    gpu: str = ""

    def __str__(self) -> str:
        if self.gpu:
            named = (f"{name} {self.packages[name]}" for name in ("torchsmith", "torch", "triton") if name in self.packages)
            return f"{self.gpu}; {', '.join(named)}"
        versions = ", ".join(f"{name} {self.packages[name]}" for name in PACKAGES[:4] if name in self.packages)
        return f"{self.cpu}, {self.cores} cores, {self.threads} threads ({', '.join(self.features) or self.system}); {versions}"


def this_machine(gpu: bool = False) -> Machine:
    """gpu: whether the GPU is what is measured."""
    target = this_cpu()
    return Machine(
        cpu=target.chip or target.arch,
        features=target.features,
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_gb=round(memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions(),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
        gpu=this_gpu() if gpu else "",
    )


def this_gpu() -> str:
    """ "NVIDIA H100 80GB HBM3, driver 580.65.06, CUDA 13.0"; the driver as far as nvidia-smi tells."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True).stdout.split() if shutil.which("nvidia-smi") else []
    driver = f", driver {found[0]}" if found else ""
    return f"{torch.cuda.get_device_name()}{driver}, CUDA {torch.version.cuda}"


def usable_cores() -> int:
    """The cores that this process may run on, which a container may have cut down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Bytes of main memory; 0 where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions() -> dict[str, str]:
    found: dict[str, str] = {"torchsmith": __version__, "torch": str(torch.__version__)}
    for package in PACKAGES:
        if package not in found:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
