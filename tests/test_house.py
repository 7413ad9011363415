"""The house itself: what the wheel holds, and that a half-made environment is made whole."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("env", HERE / "tools" / "env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wheel_holds_torchsmith_and_nothing_else(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=HERE, capture_output=True
    )
    assert built.returncode == 0, built.stderr.decode()
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"torchsmith", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert {"torchsmith/py.typed", "torchsmith/errors.py"} <= set(names)
    assert not [name for name in names if name.startswith("torchsmith/") and not name.endswith((".py", ".typed"))]


def test_every_direct_dependency_is_pinned() -> None:
    text = (HERE / "pyproject.toml").read_text()
    lists = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    asked = set(re.findall(r'"([\w-]+)(?:[><=][^"]*)?"', lists))  # "torchsmith[demo]" is no name of its own
    pinned = {line.split("==")[0] for line in (HERE / "constraints.txt").read_text().splitlines() if "==" in line}
    assert asked == pinned


def package(home: Path, name: str, text: str = "x = 1\n") -> Path:
    """An installed package of one module, as pip leaves it."""
    packages = home / "lib/python3.11/site-packages"
    info = packages / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / f"{name}.py").write_text(text)
    (info / "METADATA").write_text("")
    (info / "RECORD").write_text(
        f"{name}.py,sha256=x,{len(text)}\n{name}-1.0.dist-info/METADATA,,\n{name}-1.0.dist-info/RECORD,,\n"
    )
    return packages


def test_packages_that_are_half_there_are_forgotten(env: ModuleType, tmp_path: Path) -> None:
    packages = package(tmp_path, "whole")
    package(tmp_path, "short")
    package(tmp_path, "missing")
    package(tmp_path, "unrecorded")
    (packages / "short.py").write_text("x")
    (packages / "missing.py").unlink()
    (packages / "unrecorded-1.0.dist-info" / "RECORD").unlink()
    assert env.mend(tmp_path) == ["missing-1.0", "short-1.0", "unrecorded-1.0"]
    assert [info.name for info in packages.glob("*.dist-info")] == ["whole-1.0.dist-info"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (530.1 MB)\n", ["fetching torch 2.14.1 (530.1 MB)"]),
        ("  Downloading rich-15.0.0-py3-none-any.whl (1.8 MB)\n", []),
        ("  Downloading rich-15.0.0-py3-none-any.whl.metadata (18 kB)\n", []),
        ("Installing collected packages: a, b\n", ["unpacking 2 packages"]),
        ("Requirement already satisfied: rich in ./lib (15.0.0)\n", []),
    ],
)
def test_pips_lines_are_shown_in_short(env: ModuleType, line: str, shown: list[str]) -> None:
    assert list(env.progress(line)) == shown


def test_make_alone_says_what_there_is() -> None:
    said = subprocess.run(["make"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "env", "clean"):
        assert f"make {target}" in said
