"""Finding TensorRT, being without it, and its log."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchsmith
from torchsmith import backends
from torchsmith.backends.tensorrt import library
from torchsmith.backends.tensorrt.backend import BACKEND
from torchsmith.cli import app
from torchsmith.config import BuildConfig
from torchsmith.errors import BackendUnavailable
from torchsmith.ir.builder import Builder
from torchsmith.ir.types import TensorType
from torchsmith.ops.softmax import Softmax
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.target import Target

with_tensorrt = pytest.mark.skipif(library.installed() is None, reason=library.MISSING)
find: Any = library.trt.__wrapped__  # what is found once stays, but for here


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no TensorRT is installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in library.MODULES else real(name, *rest))
    for name in library.MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # to import it fails
    # and without the toy that other tests of the same process add
    own = {device: tuple(name for name in names if name != "toy") for device, names in backends.DEVICES.items()}
    monkeypatch.setattr(backends, "DEVICES", own)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where modules are found before the installed ones."""
    for name in library.MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tensorrt", None)


@pytest.mark.usefixtures("without")
def test_without_tensorrt_the_backend_says_what_to_install() -> None:
    assert library.installed() is None
    with pytest.raises(
        BackendUnavailable, match=r"not installed; pip install 'torchsmith\[tensorrt\]', or 'torchsmith\[tensorrt-rtx\]'"
    ):
        find()
    with pytest.raises(BackendUnavailable) as refusal:
        backends.get("tensorrt")
    assert str(refusal.value) == f"the tensorrt backend cannot be used here: {library.MISSING}"
    with pytest.raises(BackendUnavailable, match="NVIDIA TensorRT is not installed"):
        torchsmith.compile(nn.Linear(3, 2), inputs=[torch.rand(1, 3)], backend="tensorrt")


@pytest.mark.usefixtures("without")
def test_without_tensorrt_all_else_works() -> None:
    model, x = nn.Linear(3, 2).eval(), torch.rand(4, 3)
    compiled = torchsmith.compile(model, inputs=[x], min_block_size=1)
    torch.testing.assert_close(compiled(x), model(x))
    assert isinstance(compiled, CompiledModule)
    assert [call.spec.backend for call in compiled.plan.engine_calls] == ["openvino"]
    health = CliRunner().invoke(app, ["doctor", "--json"])
    assert health.exit_code == 0
    assert json.loads(health.stdout)["backends"]["tensorrt"] == library.MISSING


@pytest.mark.parametrize("error", ["OSError", "ImportError"])
def test_a_tensorrt_that_cannot_be_imported(folder: Path, error: str) -> None:
    (folder / "tensorrt.py").write_text(f"raise {error}('libnvinfer.so.10: cannot open shared object file')")
    assert library.installed() == "tensorrt"
    with pytest.raises(BackendUnavailable) as refusal:
        find()
    assert str(refusal.value) == (
        "tensorrt is installed and cannot be imported (libnvinfer.so.10: cannot open shared object file); install it again"
    )


def test_a_bug_in_what_is_imported_is_none_of_ours(folder: Path) -> None:
    (folder / "tensorrt.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        find()


def test_tensorrt_proper_goes_before_tensorrt_rtx(folder: Path) -> None:
    for name in library.MODULES:
        (folder / f"{name}.py").write_text("__version__ = '10.0'")
    assert find().__name__ == "tensorrt"


def test_a_folder_of_that_name_is_no_tensorrt(folder: Path) -> None:
    """As a checkout of TensorRT's own sources in the working directory."""
    (folder / "tensorrt" / "samples").mkdir(parents=True)
    importlib.invalidate_caches()
    assert library.installed() != "tensorrt"


def test_a_machine_on_which_no_builder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(Builder=lambda log: None, __version__="10.9.0", __name__="tensorrt")
    problems = ["CUDA initialization failure\n  with error: 35"]
    monkeypatch.setattr(library, "trt", lambda: made)
    monkeypatch.setattr(library, "log", lambda: SimpleNamespace(problems=lambda: problems))
    monkeypatch.setattr(library, "_OWN", threading.local())
    with pytest.raises(BackendUnavailable) as refusal:
        library.builder()
    assert str(refusal.value) == (
        "TensorRT 10.9.0 cannot build engines on this machine: CUDA initialization failure with error: 35"
    )


@with_tensorrt
def test_its_log_goes_to_pythons(caplog: pytest.LogCaptureFixture) -> None:
    severities = library.trt().ILogger
    levels = {"INTERNAL_ERROR": "ERROR", "ERROR": "ERROR", "WARNING": "WARNING", "INFO": "INFO", "VERBOSE": "DEBUG"}
    library.log().forget()
    with caplog.at_level(logging.DEBUG, "torchsmith.tensorrt"):
        for severity in levels:
            library.log().log(getattr(severities, severity), f"said as {severity} with 100 %s")
    assert {record.name for record in caplog.records} == {"torchsmith.tensorrt"}
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (level, f"said as {severity} with 100 %s") for severity, level in levels.items()
    ]
    assert library.log().problems() == ["said as INTERNAL_ERROR with 100 %s", "said as ERROR with 100 %s"]
    library.log().forget()
    assert library.said() == "it gave no reason"


@with_tensorrt
def test_what_tensorrt_itself_says(caplog: pytest.LogCaptureFixture) -> None:
    library.log().forget()
    module = library.trt()
    network = library.builder().create_network(0)
    x = network.add_input("x", module.DataType.FLOAT, (2, 3))
    with caplog.at_level(logging.ERROR, "torchsmith.tensorrt"):
        shuffled = network.add_shuffle(x)
        shuffled.reshape_dims = (5, 5)
        with pytest.raises(RuntimeError):
            tuple(shuffled.get_output(0).shape)
    assert any("reshape changes volume" in record.getMessage() for record in caplog.records)
    assert "reshape changes volume" in library.said(), "not that this machine has no driver, which is said after it"
    library.log().forget()


@with_tensorrt
def test_problems_are_those_of_the_thread() -> None:
    library.log().forget()
    problem = library.trt().ILogger.ERROR
    other = threading.Thread(target=lambda: library.log().log(problem, "elsewhere"))
    other.start()
    other.join()
    assert library.log().problems() == []
    library.log().log(problem, "over\n  two lines")
    assert library.said() == "over two lines"
    library.log().forget()


@with_tensorrt
def test_every_thread_has_a_builder_of_its_own() -> None:
    """TensorRT's builders are for one thread at a time, and engines may be built in several."""
    with Builder({}) as b:
        graph = b.finish([Softmax(1)(b.input(TensorType((3, 5), torch.float16)))])
    builders, engines = [library.builder()], list[bytes]()

    def build() -> None:
        builders.append(library.builder())
        engines.append(BACKEND.build(graph, Target("cuda", "sm_89"), BuildConfig()))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 3 and len({id(builder) for builder in builders}) == 4 and library.builder() is builders[0]
