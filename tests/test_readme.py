"""README holds what it says: its Python runs as it stands and prints what is shown, its commands can be read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from torchsmith.cli import app

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line.startswith("$ torchsmith ")
]


def comparable(text: str) -> list[str]:
    """Lines without times, and without the numbers that torch gives to sizes."""
    return [re.sub(r"\d+\.\d+|\bs\d+", "#", line.rstrip()) for line in text.strip().splitlines()]


@pytest.mark.slow
def test_the_python_prints_what_is_shown(tmp_path: Path) -> None:
    codes, shown = [], []
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "python":
            assert BLOCKS[number + 1][0] == "text", f"the output of this is not shown:\n{text}"
            codes.append(text)
            shown.append(comparable(BLOCKS[number + 1][1]))
    script = tmp_path / "readme.py"
    script.write_text("\nprint('~~~~')\n".join(codes), encoding="utf-8")
    run = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [comparable(part) for part in run.stdout.split("~~~~\n")] == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_there(command: str) -> None:
    _, name, *args = shlex.split(command)
    group: Any = typer.main.get_command(app)
    assert group.commands[name].make_context(name, args)


def test_there_is_a_place_for_the_benchmark() -> None:
    assert README.index("<!-- bench table -->") < README.index("<!-- /bench table -->")


def test_every_command_is_listed() -> None:
    group: Any = typer.main.get_command(app)
    assert all(f"`torchsmith {name}" in README for name in group.commands)
