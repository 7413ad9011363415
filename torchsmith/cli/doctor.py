"""`torchsmith doctor`: what this machine has, and whether torchsmith works on it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import shutil
import subprocess
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import nn

from torchsmith.cli import show
from torchsmith.target import this_cpu

if TYPE_CHECKING:
    from torchsmith.bench.machine import Machine

# relative, against float64: what rounding explains, for a network of a few layers
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
MORE_PACKAGES = ("triton", "torchvision", "tensorrt", "tensorrt_rtx_cu13_bindings", "safetensors", "sympy")


@dataclass(frozen=True)
class SelfTest:
    """A small model, compiled and compared. why: empty where it passed, else the sentence that says what happened."""

    backend: str
    precision: str
    error: float | None = None
    seconds: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Health:
    """native: of bf16 and f16, those that the CPU computes in. gpus: a line each, or why there is none.
    backends: None, or why each cannot be used here."""

    machine: Machine
    packages: dict[str, str]
    native: dict[str, bool]
    gpus: list[str]
    no_gpu: str
    backends: dict[str, str | None]
    tests: tuple[SelfTest, ...]

    @property
    def well(self) -> bool:
        return all(not test.why for test in self.tests)


def doctor(json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False) -> None:
    """Show what this machine has, and try torchsmith on it.

    Every backend that can be used here compiles and runs a small model in each precision; the others say why not.

    Exit code 0: all that should work here works. 1: something does not, and the last lines say what.

    \b
    Example:
      torchsmith doctor
    """
    health = examine()
    if json:
        show.as_json({**dataclasses.asdict(health), "well": health.well})
    else:
        print_health(health)
    raise typer.Exit(0 if health.well else 1)


def examine() -> Health:
    from torchsmith import backends
    from torchsmith.bench.machine import this_machine
    from torchsmith.quantize.precision import NATIVE_FEATURES

    machine = this_machine()
    native = {
        str(dtype).removeprefix("torch."): bool(features & set(this_cpu().features)) for dtype, features in NATIVE_FEATURES.items()
    }
    gpus, no_gpu = find_gpus()
    unavailable = {name: why_not(name, bool(gpus)) for name in backends.names()}
    precisions = {
        "cpu": [torch.float32, *(dtype for dtype in NATIVE_FEATURES if native[str(dtype).removeprefix("torch.")])],
        "cuda": list(TOLERANCE) if gpus else [],
    }
    tests = tuple(try_out(name, dtype) for name, why in unavailable.items() if why is None for dtype in precisions[device_of(name)])
    packages = {**machine.packages, **versions(MORE_PACKAGES)}
    return Health(machine, packages, native, gpus, no_gpu, unavailable, tests)


def why_not(name: str, has_gpu: bool) -> str | None:
    """Why a backend cannot be used on this machine, or for its GPU; None where it can, if only to build for others."""
    from torchsmith import backends
    from torchsmith.errors import BackendUnavailable

    backend = importlib.import_module(f"torchsmith.backends.{name}").BACKEND
    why: str | None = backend.available()
    if why is not None or (device_of(name) == "cuda" and not has_gpu):
        return why
    try:
        excluded: str | None = backend.excludes(backends.target_of(device_of(name)))
    except BackendUnavailable as broken:
        return str(broken)
    return excluded


def device_of(backend: str) -> str:
    """The kind of device that a backend is tried on."""
    from torchsmith import backends

    return next(device for device, names in backends.DEVICES.items() if backend in names)


def find_gpus() -> tuple[list[str], str]:
    """The GPUs that PyTorch can use, with their driver; and, where there is none, the reason."""
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        driver = driver_version()
        return [
            f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB" + (f", driver {driver}" if driver else "")
            for p in properties
        ], ""
    if torch.version.cuda is None:
        return [], "this PyTorch is built without CUDA"
    driver = driver_version()
    return [], f"PyTorch is built for CUDA {torch.version.cuda}, and " + (
        f"cannot use the GPU through driver {driver}" if driver else "no NVIDIA driver answers here"
    )


def driver_version() -> str:
    """What nvidia-smi says, or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else ""


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Small(nn.Module):
    """A few layers of each kind that engines live on, deterministic."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2)
            )
            self.head = nn.Linear(16, 10)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(x).mean((2, 3))).softmax(-1)
        return out


def try_out(backend: str, dtype: torch.dtype) -> SelfTest:
    import torchsmith
    from torchsmith.testing.compare import relative_error

    precision = str(dtype).removeprefix("torch.")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = Small().double()(x.double())
    model, x = Small().to(device_of(backend)), x.to(device_of(backend))
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fast = torchsmith.compile(
                model,
                inputs=[x],
                backend=backend,
                enabled_precisions={dtype},
                min_block_size=1,
                require_full_compilation=True,
                tune=False,
            )
        seconds = round(time.perf_counter() - started, 3)
        error = relative_error(fast(x), expected)
    except Exception as problem:  # whatever is wrong with this machine's packages is what is asked for
        return SelfTest(backend, precision, why=f"{type(problem).__name__}: {problem}")
    why = "" if error <= TOLERANCE[dtype] else f"wrong: its relative error is {error:.1e}, and {TOLERANCE[dtype]:.0e} is allowed"
    return SelfTest(backend, precision, error, seconds, why)


def print_health(health: Health) -> None:
    machine = health.machine
    rows = [
        ("CPU", f"{machine.cpu}, {machine.cores} cores for this process, {machine.memory_gb:.0f} GiB"),
        ("features", " ".join(machine.features) or "none of those that engines choose kernels by"),
        ("precisions", "float32" + "".join(f", {name} {'native' if yes else 'not native'}" for name, yes in health.native.items())),
        *(("GPU", line) for line in health.gpus or [f"none: {health.no_gpu}"]),
        ("Python", f"{machine.python}, {machine.system}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in health.packages.items())),
        *((f"backend {name}", why or usable(name, health)) for name, why in health.backends.items()),
    ]
    tests = [("self-test", f"{t.backend}, {t.precision}: {verdict(t)}", "red" if t.why else "green") for t in health.tests]
    show.facts([*((title, text, "") for title, text in rows), *tests])


def usable(backend: str, health: Health) -> str:
    return "available" if device_of(backend) == "cpu" or health.gpus else "available, to build for GPUs elsewhere"


def verdict(test: SelfTest) -> str:
    return test.why or f"right (relative error {test.error:.0e}), compiled in {test.seconds:.1f} s"
