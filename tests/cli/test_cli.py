"""What all commands share: help, flags made from the options, errors as sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import torchsmith
from torchsmith.bench import PEERS
from torchsmith.bench.gpu import GpuOptions
from torchsmith.bench.gpu_sides import GPU_SIDES
from torchsmith.bench.sides import SUBJECT
from torchsmith.cli import app, bench, flags, show
from torchsmith.config import options

NETS = str(Path(__file__).parent / "nets.py")
COMMANDS = ("compile", "bench", "explain", "inspect", "ops", "doctor")


def test_version(cli: Any) -> None:
    assert cli("--version").stdout == f"torchsmith {torchsmith.__version__}\n"


def test_help_has_every_command(cli: Any) -> None:
    text = cli("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS), text
    assert "..." not in text.partition("Commands:")[2], "a command's first sentence is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(cli: Any, command: str) -> None:
    assert f"Example:\n    torchsmith {command}" in cli(command, "--help").stdout


def test_every_option_is_a_flag(cli: Any) -> None:
    text = " ".join(cli("compile", "--help").stdout.split())
    for name, field in options().items():
        assert "--" + name.replace("_", "-") in text, name
        assert field.metadata["help"] in text, name


def test_flags_become_options() -> None:
    got: dict[str, Any] = {}

    @flags.with_compile_flags
    def command(model: str, given: dict[str, Any]) -> None:
        got.update(given, model=model)

    alone = typer.Typer()
    alone.command()(command)
    used = ["net", "--precision", "f32, bf16", "--no-fold-constants", "--num-threads", "3", "--performance-hint", "throughput"]
    assert CliRunner().invoke(alone, [*used, "--torch-executed-ops", "aten.add"]).exit_code == 0
    assert got == {
        "model": "net",
        "enabled_precisions": ["f32", "bf16"],
        "fold_constants": False,
        "num_threads": 3,
        "performance_hint": "throughput",
        "torch_executed_ops": ["aten.add"],
    }
    got.clear()
    assert CliRunner().invoke(alone, ["net"]).exit_code == 0
    assert got == {"model": "net"}, "an option that was not used is left to config.py"


def test_a_user_s_mistake_is_one_red_sentence(cli: Any) -> None:
    result = cli("explain", f"{NETS}:conv", "--precision", "f7")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: 'f7' is no element type that torchsmith has")
    assert result.stderr.count("\n") == 1


def test_debug_adds_the_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "1")
    result = cli("explain", f"{NETS}:conv", "--precision", "f7")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and "error: 'f7' is" in result.stderr


def test_a_bug_keeps_its_traceback(cli: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="user's own function"):
        cli("explain", f"{NETS}:broken")


def test_an_unknown_command_names_the_nearest(cli: Any) -> None:
    result = cli("inspec")
    assert result.exit_code == 2 and "Did you mean 'inspect'?" in result.stderr


def test_a_warning_is_one_sentence(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchsmith.quantize import precision

    monkeypatch.setattr(precision, "_told", set())
    monkeypatch.setattr(precision, "NATIVE_FEATURES", dict.fromkeys(precision.NATIVE_FEATURES, frozenset()))
    result = cli("explain", f"{NETS}:conv", "--precision", "half")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: ") and result.stderr.count("\n") == 1 and "torch.float16" in result.stderr


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert show.size(count) == text


def test_stages_add_up() -> None:
    stages = show.Stages()
    for text in ("capture", "build, engine 1 of 2", "build, engine 2 of 2"):
        stages.enter(text)
        time.sleep(0.01)
    stages.leave()
    assert list(stages.seconds) == ["capture", "build"]
    assert stages.seconds["build"] >= 0.02 and str(stages).startswith("capture 0.0 s, build ")


def test_bench_s_peers_are_its_default() -> None:
    assert flags.names(bench.PEERS["cpu"]) == list(PEERS)
    assert flags.names(bench.PEERS["cuda"]) == [side for side in GPU_SIDES if side != SUBJECT]
    assert GpuOptions().seconds == bench.SECONDS["cuda"] and GpuOptions().precision == bench.PRECISIONS["cuda"]


def test_ops_are_counted(cli: Any) -> None:
    names = json.loads(cli("ops", "--json").stdout)
    assert "default" in names["aten.relu"]
    last = cli("ops").stdout.splitlines()[-1]
    assert last == f"{len(names)} operators, {sum(map(len, names.values()))} overloads"
    assert cli("ops", "conv2d").stdout.splitlines()[0].startswith("aten.conv2d: default")


def run_python(*args: str) -> str:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = ("openvino", "sympy", "timm", "transformers", "matplotlib", "torch.export", "torch._dynamo", "rich.progress")
    load = "import sys, torch; had = set(sys.modules); import torchsmith.cli; new = set(sys.modules) - had"
    assert run_python("-c", f"{load}; print([m for m in {heavy} if m in new])") == "[]\n"


def test_as_a_module() -> None:
    assert run_python("-m", "torchsmith", "--version") == f"torchsmith {torchsmith.__version__}\n"


def test_the_commands_are_the_app_s() -> None:
    assert tuple(command.name for command in app.registered_commands) == COMMANDS


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX has them")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torchsmith", "compile", f"{NETS}:slow", "-o", str(tmp_path / "slow.pt2")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, f"error: interrupted; {tmp_path / 'slow.pt2'} was not written\n")
    assert list(tmp_path.iterdir()) == []
