"""`torchsmith inspect`: what it shows of a package, and what it says of a damaged one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from torchsmith import backends
from torchsmith.cli import inspect
from torchsmith.errors import BackendUnavailable, PackageError
from torchsmith.package import load, save
from torchsmith.package.archive import HEADER
from torchsmith.target import Target


def test_what_is_in_a_package(cli: Any, package: Path) -> None:
    contents = json.loads(cli("inspect", package, "--json").stdout)
    (x, mask), (y, second) = contents["inputs"], contents["outputs"]
    assert x.startswith("x: float32[") and x.endswith("=1..8, 8] on cpu") and mask.startswith("mask: float32[")
    assert y.startswith("output['y']: float32[s") and second == "output['x']: made in PyTorch by aten.special_bessel_j0.default"
    assert len(contents["engines"]) == 2 and contents["engines"][0]["engine_bytes"] > 0
    assert contents["versions"]["torch"] == torch.__version__
    assert contents["why_not"] == "" and contents["bytes"] == package.stat().st_size
    assert [r["op"] for r in contents["refusals"]] == ["aten.special_bessel_j0.default"]


def test_as_a_table(cli: Any, package: Path) -> None:
    text = cli("inspect", package).stdout
    assert "runs here" in text and "yes" in text and "checksums right" in text
    assert f"`torchsmith explain {package}` says why" in " ".join(text.split())


def test_weights_that_stayed_in_pytorch(tmp_path: Path) -> None:
    import torchsmith

    net = torch.nn.Linear(4, 4).eval()
    save(torchsmith.compile(net, inputs=[torch.randn(2, 4)], torch_executed_ops={"aten.linear"}), tmp_path / "net.pt2")
    contents = inspect.contents_of(tmp_path / "net.pt2")
    assert contents.weights == {"weight": 64, "bias": 16} and contents.engines == []


def test_no_engine_is_loaded(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchsmith.runtime import engines

    monkeypatch.setattr(engines, "obtain", lambda *_, **__: pytest.fail("an engine was loaded"))
    assert inspect.contents_of(package).why_not == ""


def test_a_machine_of_another_kind(cli: Any, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "this_cpu", lambda: Target("cpu", "sparc"))
    result = cli("inspect", package)
    assert result.exit_code == 0 and "no: built for cpu" in result.stdout and "sparc" in result.stdout


def test_a_backend_that_is_missing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(name: str) -> Any:
        raise BackendUnavailable(f"the {name} backend cannot be used here")

    monkeypatch.setattr(backends, "get", get)
    assert "backend cannot be used here" in inspect.contents_of(package).why_not


@pytest.mark.parametrize("missing", ["report", "versions", "target", "torch"])
def test_a_header_that_says_too_little(cli: Any, package: Path, tmp_path: Path, missing: str) -> None:
    path = tmp_path / "poor.pt2"
    with zipfile.ZipFile(package) as rich, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as poor:
        for name in rich.namelist():
            data = rich.read(name)
            if name.endswith(HEADER):
                header = json.loads(data)
                header.pop({"versions": "backends"}.get(missing, missing))
                data = json.dumps(header).encode()
            poor.writestr(name, data)
    result = cli("inspect", path)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {path}: its header cannot be read (KeyError: ")
    if missing == "report":
        assert "its header has no report" in cli("explain", path).stderr


@pytest.mark.parametrize("damage", ["half", "altered", "empty", "text"])
def test_a_damaged_file_gets_the_sentence_of_load(cli: Any, package: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(package.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 0xFF
    made = {"half": data[:middle], "altered": data, "empty": b"", "text": b"hello, I am no package at all"}
    path = tmp_path / "damaged.pt2"
    path.write_bytes(made[damage])
    with pytest.raises(PackageError) as told:
        load(path)
    result = cli("inspect", path)
    assert result.exit_code == 2 and result.stderr == f"error: {told.value}\n"


@pytest.fixture(scope="module")
def for_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torchsmith

    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval()
    rows = torchsmith.Input(min_shape=(2, 16), opt_shape=(8, 16), max_shape=(64, 16))
    path = tmp_path_factory.mktemp("gpu") / "net.pt2"
    save(torchsmith.compile(net, inputs=[rows], enabled_precisions={torch.half}, target="sm_90", min_block_size=1), path)
    return path


def test_the_steps_of_an_engine_for_a_gpu(cli: Any, for_a_gpu: Path) -> None:
    (found,) = json.loads(cli("inspect", for_a_gpu, "--json").stdout)["steps"]
    ((name, size),) = found["at"].items()
    assert size == 2 and found["chip"] == "H100"
    assert sum(step["flops"] for step in found["steps"]) == 2 * 2 * (16 * 32 + 32 * 8)
    text = cli("inspect", for_a_gpu, "--at", f"{name}=64").stdout
    assert f"engine 0 at {name}=64, against the roofline of H100" in text and "Linear, relu" in text and "linear.py:" in text
    assert "steps move" in text and "GFLOP; H100 could do it in" in text


@pytest.mark.parametrize("at", ["s0", "s0=x", "0=3"])
def test_sizes_that_are_none(cli: Any, for_a_gpu: Path, at: str) -> None:
    result = cli("inspect", for_a_gpu, "--at", at)
    assert result.exit_code == 2 and f"--at {at}: it takes sizes by their names" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_there_is_nothing_to_measure_on(cli: Any, for_a_gpu: Path) -> None:
    result = cli("inspect", for_a_gpu, "--measure")
    assert result.exit_code == 2 and "PyTorch finds no GPU here" in result.stderr


def test_an_ops_name_without_its_attributes() -> None:
    from torchsmith.cli.steps import short

    fused = "Fused[convolution](Cast(dtype=torch.float16), Convolution(stride=(2, 2), padding=((1, 1), (1, 1))), Unary[silu])"
    assert short(fused) == "Cast, Convolution, silu" and short("MaxPool(kernel=(3, 3))") == "MaxPool"
