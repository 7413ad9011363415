"""The rooms of the house: imports point one way, and every room and every op is tested.

The guards are functions of a source tree, so that the second half of this file can plant each kind of violation in a
made-up tree and see it found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
TOP = "the public names"  # torchsmith/__init__.py

# A room may import those before it and itself, never one after it.
ORDER = (
    "version",
    "errors",
    "sizes",
    "dtypes",
    "target",
    "config",
    "inputs",
    "ir",
    "ops",
    "capture",
    "debug",  # shows programs and graphs with their source lines
    "convert",
    "lower",
    "quantize",
    "ptq",  # the calibrators' public names
    "sparsity",
    "partition",
    "backends",
    "runtime",
    "build",
    "report",
    "package",
    "explain",
    "compile",
    "testing",
    TOP,
    "bench",  # times what a user would call
    "cli",
    "__main__",
)

ONE_TEST_A_MODULE = ("ops", "lower")  # elsewhere a room needs a test file of its name


@dataclass(frozen=True)
class Import:
    """A line in `file` that imports `module`, an absolute dotted name."""

    file: Path
    line: int
    module: str


def imports_of(file: Path, root: Path) -> Iterator[Import]:
    """Every import of something in torchsmith, at the top, in functions, for type checking only, or by name."""
    package = module_of(file, root) if file.name == "__init__.py" else module_of(file, root).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for module in imported(node, package, root):
            if module.split(".")[0] == "torchsmith":
                yield Import(file, node.lineno, module)  # type: ignore[attr-defined]


def imported(node: ast.AST, package: str, root: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        inside = root.joinpath(*base.split("."))
        submodules = {name.name for name in node.names if (inside / name.name).is_dir() or (inside / f"{name.name}.py").exists()}
        named = [f"{base}.{name}" for name in sorted(submodules)]
        return named if len(submodules) == len(node.names) else [*named, base]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def module_of(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else TOP


def backend_of(module: str) -> str | None:
    """The backend that a module belongs to; the registry and what backends share belong to none."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "backends" else None


def arrows_that_point_back(root: Path) -> list[str]:
    """A sentence for each import that goes against ORDER, or from one backend to another."""
    found = []
    backends = {path.name for path in (root / "torchsmith/backends").glob("*/")}
    for file in sorted(root.glob("torchsmith/**/*.py")):
        module = module_of(file, root)
        room = room_of(module)
        if room not in ORDER:
            found.append(
                f"{file.relative_to(root)} is in the room {room!r}, which has no place in ORDER of tests/test_rooms.py yet"
            )
            continue
        for to in imports_of(file, root):
            where = f"{file.relative_to(root)}:{to.line} imports {to.module}"
            if room_of(to.module) not in ORDER:
                found.append(f"{where}, a room that has no place in ORDER of tests/test_rooms.py yet")
            elif ORDER.index(room_of(to.module)) > ORDER.index(room):
                found.append(f"{where}, but {room_of(to.module)} comes after {room}; move what both need to an earlier room")
            elif {backend_of(module), backend_of(to.module)} <= backends and backend_of(module) != backend_of(to.module):
                found.append(f"{where}, but no backend may need another one; move what both need to torchsmith/backends")
    return found


def untested(root: Path) -> list[str]:
    """A sentence for each module or room that has functions and no test where its test belongs."""
    found = []
    for file in sorted(root.glob("torchsmith/**/*.py")):
        module = module_of(file, root)
        room = room_of(module)
        if room == TOP or file.name.startswith("_") or not has_functions(file):
            continue
        if room in ONE_TEST_A_MODULE:
            mirror = root / "tests" / room / f"test_{file.stem}.py"
            users = {i.module for test in (root / "tests" / room).glob("test_*.py") for i in imports_of(test, root)}
            if not mirror.exists() and module not in users:
                found.append(f"{file.relative_to(root)} has no test; write {mirror.relative_to(root)}")
    for room, parent in sorted(rooms_with_functions(root)):
        tests = root / "tests" / parent
        if not (tests / f"test_{room}.py").exists() and not list((tests / room).glob("**/test_*.py")):
            where = f"tests/{parent}".rstrip("/")
            found.append(f"torchsmith/{parent}{room} has no test; write {where}/test_{room}.py or {where}/{room}/test_*.py")
    return found


def rooms_with_functions(root: Path) -> set[tuple[str, str]]:
    """Rooms, and the backends in their room, each with the folder that it lies in."""
    rooms = set()
    for file in root.glob("torchsmith/**/*.py"):
        module = module_of(file, root)
        if room_of(module) in (TOP, "__main__") or not has_functions(file):
            continue
        backend = backend_of(module)
        rooms.add(
            (backend, "backends/") if backend and (root / "torchsmith/backends" / backend).is_dir() else (room_of(module), "")
        )
    return rooms


def has_functions(file: Path) -> bool:
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(ast.parse(file.read_text("utf-8"))))


def test_imports_point_one_way() -> None:
    assert not (found := arrows_that_point_back(HERE)), "\n".join(found)


def test_everything_has_its_test() -> None:
    assert not (found := untested(HERE)), "\n".join(found)


# The guards, guarded.

F = "def f() -> None: ...\n"

HOUSE = {
    "torchsmith/__init__.py": "from torchsmith.compile import compile\n",
    "torchsmith/errors.py": "class Unsupported(Exception): ...\n",
    "torchsmith/compile.py": "from torchsmith import ir\nfrom torchsmith.ops import relu\nfrom .backends import get\n" + F,
    "torchsmith/cli.py": "import torchsmith\n" + F,
    "torchsmith/__main__.py": "from torchsmith.cli import f\nf()\n",
    "torchsmith/ir/__init__.py": "",
    "torchsmith/ir/graph.py": "from ..errors import Unsupported\nfrom .types import f\n" + F,
    "torchsmith/ir/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torchsmith.ir.graph import f\n" + F,
    "torchsmith/ops/__init__.py": "",
    "torchsmith/ops/relu.py": "from torchsmith.ir.graph import f\n" + F,
    "torchsmith/ops/sort.py": F,
    "torchsmith/backends/__init__.py": "def get():\n    import torchsmith.backends.openvino\n    from . import reference\n",
    "torchsmith/backends/openvino/__init__.py": "from torchsmith.backends import get\n" + F,
    "torchsmith/backends/reference/__init__.py": "from torchsmith.ops import relu\n" + F,
    "tests/test_ir.py": "",
    "tests/test_compile.py": "",
    "tests/test_cli.py": "",
    "tests/ops/test_relu.py": "",
    "tests/ops/test_order.py": "from torchsmith.ops.sort import f\n",
    "tests/backends/test_backends.py": "",
    "tests/backends/test_openvino.py": "",
    "tests/backends/reference/test_run.py": "",
    "tests/test_backends.py": "",
}


def build(root: Path, extra: dict[str, str]) -> Path:
    for name, text in {**HOUSE, **extra}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_sound_house_has_no_complaints(tmp_path: Path) -> None:
    house = build(tmp_path, {})
    assert arrows_that_point_back(house) == []
    assert untested(house) == []


@pytest.mark.parametrize(
    ("file", "code", "why"),
    [
        pytest.param("ir/new.py", "import torchsmith.ops.relu", "ops comes after ir", id="import"),
        pytest.param("ir/new.py", "from torchsmith.ops.relu import f", "ops comes after ir", id="from module"),
        pytest.param("ir/new.py", "from torchsmith import ops", "ops comes after ir", id="from package"),
        pytest.param("ir/new.py", "from ..ops import relu", "ops comes after ir", id="relative"),
        pytest.param("ir/__init__.py", "from .. import ops", "ops comes after ir", id="relative, in an __init__"),
        pytest.param(
            "ir/new.py", "def f():\n    from torchsmith.ops import relu", "new.py:2 imports torchsmith.ops.relu", id="function"
        ),
        pytest.param("ir/new.py", "if TYPE_CHECKING:\n    import torchsmith.cli", "cli comes after ir", id="type checking"),
        pytest.param("ir/new.py", "importlib.import_module('torchsmith.ops.relu')", "ops comes after ir", id="by name"),
        pytest.param("ir/new.py", "import torchsmith", f"{TOP} comes after ir", id="the public names"),
        pytest.param("compile.py", "from torchsmith import compile, __version__", f"{TOP} comes after compile", id="an attribute"),
        pytest.param("__init__.py", "from torchsmith.bench import x", f"bench comes after {TOP}", id="from the top"),
        pytest.param("errors.py", "from torchsmith import ir", "ir comes after errors", id="module to package"),
        pytest.param(
            "backends/openvino/x.py", "from torchsmith.backends.reference import f", "no backend may need another", id="backends"
        ),
        pytest.param("backends/openvino/x.py", "from ..reference import f", "no backend may need another", id="backends, relative"),
        pytest.param("attic/x.py", "", "'attic', which has no place in ORDER", id="unknown room"),
        pytest.param("cli.py", "import torchsmith.attic", "a room that has no place in ORDER", id="import of an unknown room"),
    ],
)
def test_a_planted_arrow_is_found(tmp_path: Path, file: str, code: str, why: str) -> None:
    found = arrows_that_point_back(build(tmp_path, {f"torchsmith/{file}": code}))
    assert len(found) == 1 and why in found[0], found


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("ops/tanh.py", "torchsmith/ops/tanh.py has no test; write tests/ops/test_tanh.py"),
        ("package/save.py", "torchsmith/package has no test; write tests/test_package.py or tests/package/test_*.py"),
        ("target.py", "torchsmith/target has no test; write tests/test_target.py or tests/target/test_*.py"),
        (
            "backends/cuda/run.py",
            "torchsmith/backends/cuda has no test; write tests/backends/test_cuda.py or tests/backends/cuda/test_*.py",
        ),
    ],
)
def test_a_planted_gap_is_found(tmp_path: Path, file: str, sentence: str) -> None:
    assert untested(build(tmp_path, {f"torchsmith/{file}": F})) == [sentence]


def test_helpers_and_plain_data_need_no_test(tmp_path: Path) -> None:
    assert untested(build(tmp_path, {"torchsmith/ops/_shapes.py": F, "torchsmith/ops/names.py": "A = 1\n"})) == []
