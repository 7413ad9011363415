"""GPUs that TensorRT-RTX does not support are refused before anything is built; and machines without TensorRT, or without a GPU."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import torchsmith
from torchsmith import backends
from torchsmith.backends.tensorrt import build, library
from torchsmith.backends.tensorrt.backend import BACKEND
from torchsmith.cli import doctor
from torchsmith.config import BuildConfig
from torchsmith.errors import BackendUnavailable
from torchsmith.ir.builder import Builder
from torchsmith.ir.types import TensorType
from torchsmith.runtime import engines
from torchsmith.runtime.spec import EngineSpec
from torchsmith.target import Target

if library.installed() is None:
    pytest.skip(library.MISSING, allow_module_level=True)
only_rtx = pytest.mark.skipif(not library.is_rtx(), reason="TensorRT does not list the GPUs that it supports")
H100 = Target("cuda", "sm_90", (), "NVIDIA H100 80GB HBM3")
REFUSAL = f"{library.title()} does not support compute capability 9.0, but 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
MODEL, X = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
WITHOUT = """
import importlib.util, sys, torchsmith
assert not [name for name in sys.modules if "tensorrt" in name], "it is imported with torchsmith"
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in MODULES else find(name, *rest)
sys.modules.update(dict.fromkeys(MODULES))
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], None]:
    """To be on a machine with that GPU, as far as torchsmith asks."""

    def at(target: Target) -> None:
        monkeypatch.setattr(backends, "target_of", lambda device: target if device == "cuda" else backends.this_cpu())
        monkeypatch.setattr(doctor, "find_gpus", lambda: ([target.chip], ""))

    return at


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("it is built nevertheless")

    monkeypatch.setattr(build, "build_engine", fail)
    monkeypatch.setattr(type(BACKEND), "refuses", fail)


@only_rtx
@pytest.mark.usefixtures("nothing_is_built")
def test_this_machines_gpu_is_refused_before_it_is_built_for(here: Callable[[Target], None]) -> None:
    here(H100)
    with pytest.raises(BackendUnavailable) as refused:
        backends.choose("tensorrt", torch.device("cuda"))
    assert str(refused.value) == (
        f"the tensorrt backend cannot build for cuda sm_90 (NVIDIA H100 80GB HBM3): {REFUSAL}; "
        "compile the model with backend='cuda', torchsmith's own engines, which run from 8.0 on"
    )


@only_rtx
@pytest.mark.usefixtures("nothing_is_built")
def test_a_target_is_refused_before_it_is_built_for() -> None:
    for compiled in (torchsmith.compile, torchsmith.convert_method_to_trt_engine):
        with pytest.raises(BackendUnavailable, match=f"cannot build for cuda sm_90: {REFUSAL}.*backend='cuda'"):
            compiled(MODEL, inputs=[X], backend="tensorrt", target="sm_90")


@only_rtx
def test_gpus_that_are_supported() -> None:
    assert all(BACKEND.excludes(Target("cuda", arch)) is None for arch in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120"))
    assert "compute capability 10.0, but" in str(BACKEND.excludes(Target("cuda", "sm_100")))


def test_tensorrt_proper_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "trt", lambda: SimpleNamespace(__name__="tensorrt", __version__="10.9"))
    assert BACKEND.excludes(H100) is None


@only_rtx
def test_doctor_does_not_try_what_a_gpu_cannot_run(here: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch) -> None:
    here(H100)
    assert str(doctor.why_not("tensorrt", True)).startswith(REFUSAL) and doctor.why_not("tensorrt", False) is None
    tried: list[str] = []
    monkeypatch.setattr(doctor, "try_out", lambda name, dtype: tried.append(name) or doctor.SelfTest(name, "float32", 0.0, 0.0))
    health = doctor.examine()
    assert health.well and str(health.backends["tensorrt"]).startswith(REFUSAL)
    assert "cuda" in tried and "tensorrt" not in tried


@only_rtx
def test_turing_has_engines_of_its_own() -> None:
    """TensorRT-RTX's engines run on all the others."""
    for arch, wanted in (("sm_75", [library.trt().ComputeCapability.SM75]), ("sm_89", [])):
        with build.configured(BuildConfig(), Target("cuda", arch)) as settings:
            assert [settings.get_compute_capability(i) for i in range(settings.num_compute_capabilities)] == wanted
    with Builder({}) as b:
        graph = b.finish([b.input(TensorType((3,), torch.float16))])
    assert build.build_engine(graph, Target("cuda", "sm_75"), BuildConfig())


def test_an_engine_that_comes_to_a_machine_without_tensorrt(
    here: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    here(Target("cuda", "sm_89", (), "NVIDIA L4"))
    monkeypatch.setattr("torchsmith.backends.tensorrt.backend.installed", lambda: None)
    engine = torch.zeros(8, dtype=torch.uint8)
    spec = {"backend": "tensorrt", "id": hashlib.sha256(bytes(8)).hexdigest(), "symbols": [], "inputs": [], "outputs": []}
    with pytest.raises(BackendUnavailable) as missing:
        engines.obtain(EngineSpec.from_json(json.dumps({**spec, "device": "cuda"})), engine, torch.device("cuda"))
    assert str(missing.value) == f"the tensorrt backend cannot be used here: {library.MISSING}"


def test_a_package_without_tensorrt(tmp_path: Path) -> None:
    """It is looked at, and loaded where its GPU is not. Nothing imports TensorRT on the way, and nothing of ours does at first."""
    compiled = torchsmith.compile(MODEL, inputs=[X], backend="tensorrt", target="sm_89", min_block_size=1)
    torchsmith.save(compiled, tmp_path / "x.pt2")
    code = WITHOUT + (
        "import torch\n"
        "from typer.testing import CliRunner\n"
        "from torchsmith.cli import app\n"
        f"file = {str(tmp_path / 'x.pt2')!r}\n"
        "shown = CliRunner().invoke(app, ['inspect', file])\n"
        "assert shown.exit_code == 0 and 'matrix_multiply' in shown.output, shown.output\n"
        "try:\n"
        "    torchsmith.load(file)(torch.randn(2, 4))\n"
        "except torchsmith.errors.TorchsmithError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "built for cuda sm_89" in done.stdout
