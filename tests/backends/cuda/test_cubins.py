from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton

from tests.backends.cuda.problems import layers, placed
from torchsmith.backends.cuda import cubins, tactics, tune, workers
from torchsmith.backends.cuda.cubins import Broken, Cubin, compile_all, compile_kernel
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.steps import Kernel
from torchsmith.errors import BuildError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for every test, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cubins._remembered.clear()
    yield tmp_path / "torchsmith" / "cubins"
    cubins._remembered.clear()


def kernel(**changes: Any) -> Kernel:
    """A small product's."""
    graph = fuse(layers(1))
    search = tune.Search(*placed(graph), 1)
    problem = search.problem(graph.nodes[0], {})
    assert problem.tactics[0] is not None and tactics.kind_of(search.emission(graph.nodes[0])) == "gemm"
    (launch,) = search.candidate(problem, problem.tactics[0]).launches
    return dataclasses.replace(launch.kernel, **changes)


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise AssertionError("it is compiled again")

    monkeypatch.setattr(cubins, "attempt", fails)
    monkeypatch.setattr(cubins, "compile_in_workers", fails)


def test_engines_carry_no_lines_for_debuggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "triton"))
    made = compile_kernel(kernel(), 90)
    assert isinstance(made, Cubin) and b".debug_line" not in made.code
    assert not triton.knobs.compilation.disable_line_info  # others' kernels have them


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_what_one_build_compiled_another_one_finds(folder: Path, monkeypatch: pytest.MonkeyPatch, arch: int) -> None:
    ((_, first),) = compile_all([kernel(), kernel()], arch)
    assert isinstance(first, Cubin) and first.code.startswith(b"\x7fELF") and len(files(folder)) == 1
    no_compiler(monkeypatch)
    cubins._remembered.clear()
    assert list(compile_all([kernel()], arch)) == [(kernel(), first)]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: b"", lambda data: data.replace(b"ELF", b"elf"), lambda d: b"[]\n"]
)
def test_a_damaged_file_is_compiled_anew(folder: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Cubin(b"\x7fELF code", "gemm", 128, 0, True)
    monkeypatch.setattr(cubins, "attempt", lambda kernel, arch: made)
    assert list(compile_all([kernel()], 90)) == [(kernel(), made)]
    (path,) = files(folder)
    path.write_bytes(damage(path.read_bytes()))
    cubins._remembered.clear()
    assert cubins.recall(kernel(), 90) is None
    assert list(compile_all([kernel()], 90)) == [(kernel(), made)]


def test_other_architectures_versions_and_sources_are_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "attempt", lambda kernel, arch: Cubin(b"code", "gemm", 128, 0, True))
    list(compile_all([kernel()], 90))
    assert cubins.recall(kernel(), 90) is not None
    assert cubins.recall(kernel(), 100) is None and cubins.recall(kernel(num_warps=2), 90) is None
    monkeypatch.setattr(cubins, "source_hash", lambda module: "other text")
    assert cubins.recall(kernel(), 90) is None


def test_a_refusal_is_kept_and_a_bug_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "attempt", lambda kernel, arch: "too much" if arch == 80 else Broken("no such name"))
    assert [made for _, made in compile_all([kernel()], 80)] == ["too much"]
    assert [type(made) for _, made in compile_all([kernel()], 90)] == [Broken]
    cubins._remembered.clear()
    assert cubins.recall(kernel(), 80) == "too much" and cubins.recall(kernel(), 90) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cubins, "attempt", lambda kernel, arch: "too much")
    assert [made for _, made in compile_all([kernel()], 80)] == ["too much"]


def test_the_folder_does_not_grow_for_ever(folder: Path) -> None:
    for number in range(5):
        path = folder / "ab" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))
    cubins.trim(folder, 250)
    assert sorted(p.name for p in files(folder)) == ["3", "4"]


def test_too_much_shared_memory_is_a_sentence_and_a_wrong_kernel_an_error() -> None:
    constants = dict(kernel().constants)
    large = {**constants, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 1024}
    found = compile_kernel(kernel(constants=tuple(large.items()), num_stages=1, num_warps=4), 80)
    assert isinstance(found, str) and "shared memory" in found
    with pytest.raises(BuildError, match="does not compile for sm_90"):
        compile_kernel(kernel(constants=tuple({**constants, "BLOCK_M": 17}.items())), 90)


# ---- processes -------------------------------------------------------------


def test_processes_compile_for_a_script_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(
        "import pickle, sys\n"
        "from torchsmith.backends.cuda.cubins import Cubin, compile_all\n"
        "kernels = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(sorted(type(made).__name__ for _, made in compile_all(kernels, 90, 2)))\n"
    )
    constants = dict(kernel().constants)
    broken = kernel(constants=tuple({**constants, "BLOCK_M": 17}.items()))
    (tmp_path / "kernels").write_bytes(pickle.dumps([kernel(num_stages=n) for n in (1, 2, 3)] + [broken]))
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "kernels")],
        **{"capture_output": True, "text": True, "timeout": 200},
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.split("\n")[0] == "['Broken', 'Cubin', 'Cubin', 'Cubin']", done.stdout + done.stderr
    assert done.returncode == 0


def scripted(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Workers that run this in the place of ours."""
    real = subprocess.Popen

    def start(command: list[str], **given: Any) -> Any:
        helpers = "from torchsmith.backends.cuda.workers import _receive, _send\n"
        return real([command[0], "-c", "import sys, os, time\n" + helpers + program], **given)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    monkeypatch.setattr(workers, "_idle", [])


def test_a_process_that_dies_over_a_kernel_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(
        monkeypatch,
        "while True:\n"
        "    kernel, arch = _receive(sys.stdin.buffer, 60)\n"
        "    if kernel.num_stages == 3: sys.stderr.write('LLVM ERROR'); sys.stderr.flush(); os._exit(9)\n"
        "    _send(sys.stdout.buffer, 'done')\n",
    )
    given = [kernel(num_stages=n) for n in (1, 2, 3, 4)]
    found = dict(compile_all(given, 90, 2))
    assert [found[k] for k in given if k.num_stages != 3] == ["done"] * 3
    (died,) = (made for k, made in found.items() if k.num_stages == 3)
    assert isinstance(died, Broken) and "LLVM ERROR" in died and "gemm" in died
    workers.dismiss()


def test_a_kernel_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, "time.sleep(600)\n")
    monkeypatch.setattr(workers, "KERNEL_SECONDS", 0.1)
    monkeypatch.setattr(workers, "_STARTING_SECONDS", 0.2)
    started = time.monotonic()
    found = [made for _, made in compile_all([kernel(num_stages=n) for n in (1, 2, 3, 4)], 90, 4)]
    assert all(isinstance(made, Broken) and "took more than" in made for made in found)
    assert time.monotonic() - started < 60


def test_where_no_process_can_be_started_this_one_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(workers, "_idle", [])
    monkeypatch.setattr(workers.subprocess, "Popen", refuse)
    monkeypatch.setattr(cubins, "attempt", lambda kernel, arch: "here")
    assert [made for _, made in compile_all([kernel(num_stages=n) for n in (1, 2, 3, 4)], 90, 4)] == ["here"] * 4
