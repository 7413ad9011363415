"""`torchsmith doctor`: what it finds on this machine, and what it says when something is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from torchsmith import backends
from torchsmith.backends.openvino.backend import OpenVinoBackend
from torchsmith.cli import doctor


@pytest.fixture(autouse=True)
def own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the toy that other tests of the same process add, which takes no graphs."""
    own = {device: tuple(name for name in names if name != "toy") for device, names in backends.DEVICES.items()}
    monkeypatch.setattr(backends, "DEVICES", own)


def test_this_machine_is_well(cli: Any) -> None:
    result = cli("doctor", "--json")
    health = json.loads(result.stdout)
    assert result.exit_code == 0 and health["well"], health["tests"]
    assert set(health["backends"]) == set(backends.names())
    tested = {(test["backend"], test["precision"]) for test in health["tests"]}
    assert ("reference", "float32") in tested
    assert (("reference", "bfloat16") in tested) == health["native"]["bfloat16"]
    assert all(test["error"] <= 2e-2 for test in health["tests"])
    assert health["gpus"] or health["no_gpu"]
    assert any(backend == "cuda" for backend, _ in tested) == bool(health["gpus"]), "it is tried where there is a GPU"


def test_as_a_table(cli: Any) -> None:
    text = cli("doctor").stdout
    for title in ("CPU", "features", "GPU", "Python", "packages", "backend reference", "self-test"):
        assert f"\n{title}" in f"\n{text}"


def test_an_unavailable_backend_says_why(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoBackend, "available", lambda self: "the package openvino is not installed")
    result = cli("doctor")
    assert result.exit_code == 0, f"the reference backend still works: {result.stdout}"
    assert "the package openvino is not installed" in result.stdout


def test_a_backend_that_fails_makes_the_machine_unwell(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        raise OSError("libtbb.so: no such file")

    monkeypatch.setattr(OpenVinoBackend, "load", load)
    result = cli("doctor")
    assert result.exit_code == 1
    assert "libtbb.so: no such file" in result.stdout and "right (relative error" in result.stdout


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.TOLERANCE, torch.float32, 0.0)
    assert doctor.try_out("reference", torch.float32).why.startswith("wrong: its relative error is")


def test_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.driver_version() == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.find_gpus() == ([], "this PyTorch is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.find_gpus()[1].endswith("no NVIDIA driver answers here")
