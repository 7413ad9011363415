"""Which backend is taken, and why not another."""

from __future__ import annotations

import pytest
import torch

from torchsmith import backends
from torchsmith.errors import BackendUnavailable, InvalidOption
from torchsmith.target import this_cpu

CPU = torch.device("cpu")


def test_openvino_is_the_default_on_a_cpu() -> None:
    backend, target = backends.choose(None, CPU)
    assert (backend.name, target) == ("openvino", this_cpu())


def test_a_backend_is_taken_by_its_name() -> None:
    assert backends.choose("reference", CPU)[0].name == "reference"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidOption, match="'onnx' is not known; torchsmith has openvino, reference"):
        backends.get("onnx")


def test_a_backend_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.get("openvino")
    monkeypatch.setattr(type(backend), "available", lambda self: "the package openvino is not installed; pip install openvino")
    with pytest.raises(BackendUnavailable, match="cannot be used here: the package openvino is not installed"):
        backends.get("openvino")
    assert backends.choose(None, CPU)[0].name == "reference"  # and the default is the next


def test_a_backend_whose_engines_do_not_run_on_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.get("openvino")
    monkeypatch.setattr(type(backend), "excludes", lambda self, target: f"there is no {target.arch} in it")
    with pytest.raises(BackendUnavailable, match=rf"the openvino backend cannot build for cpu {this_cpu().arch}.*: there is no "):
        backends.choose("openvino", CPU)
    assert backends.choose(None, CPU)[0].name == "reference"


def test_a_backend_for_another_kind_of_device() -> None:
    with pytest.raises(BackendUnavailable) as refused:
        backends.choose("cuda", CPU)
    assert str(refused.value) == (
        "the cuda backend is for device cuda, and the model is on cpu; move it to such a device, or give target='sm_89' for one "
        "that is elsewhere"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(BackendUnavailable, match="finds no GPU here; use device='cpu'"):
        backends.choose(None, torch.device("cuda"))
