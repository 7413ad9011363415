"""The real commands, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner

from torchsmith.cli import app

NETS = str(Path(__file__).parent / "nets.py")
Cli: TypeAlias = Callable[..., Any]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """cli("inspect", path): the result, with exit_code, stdout and stderr. A bug shows its own traceback here."""

    def run(*args: object) -> Any:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def package(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One op in PyTorch between two engines, batch 1 to 8."""
    path = tmp_path_factory.mktemp("package") / "masked.pt2"
    result = cli("compile", f"{NETS}:masked", "--batch", "1..8", "--min-block-size", 1, "-o", path)
    assert result.exit_code == 0, result.stderr
    return path
