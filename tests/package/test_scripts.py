"""Modules that were compiled in parts, as files: their TorchScript comes along, and does nothing that it should not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from tests.package.packages import elsewhere, forge
from torchsmith.errors import PackageError
from torchsmith.package import load, save
from torchsmith.package.archive import read_header
from torchsmith.package.scripts import script_from_bytes, script_to_bytes
from torchsmith.runtime.hybrid import HybridScript

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; users have it all the same


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) + self.calls


class Writer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "anywhere")
        return x


class Reader(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_file("anywhere", False, 4) + x


class Waiter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops._c10d_functional.wait_tensor(x)


X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture(scope="module")
def fast() -> HybridScript:
    torch.manual_seed(0)
    made = torchsmith.compile(torch.jit.script(Counter().eval()), inputs=[X], min_block_size=1)
    assert isinstance(made, HybridScript) and len(made.parts) == 1
    return made


@pytest.fixture
def file(fast: HybridScript, tmp_path: Path) -> Path:
    save(fast, tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def test_the_same_module_comes_back_with_its_state(fast: HybridScript, tmp_path: Path) -> None:
    fast(X)
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert isinstance(again, HybridScript) and again.report == fast.report and again.calls == fast.calls
    torch.testing.assert_close(again(X), fast(X), rtol=0, atol=0)
    torch.testing.assert_close(again(torch.ones(3, 4)), fast(torch.ones(3, 4)))  # other sizes run in TorchScript
    assert again.parts[0].call.report["segments"], "the engine was not built again"
    assert torchsmith.explain(again).summary == torchsmith.explain(fast).summary
    save(again, tmp_path / "again.pt2")
    torch.testing.assert_close(load(tmp_path / "again.pt2")(X), fast(X))


def test_another_process_loads_it_without_a_compiler(file: Path) -> None:
    done = elsewhere(
        """
        import torch, torchsmith
        module = torchsmith.load(sys.argv[1])
        print(tuple(module(torch.ones(2, 4)).shape), "torchsmith.lower" in sys.modules, type(module).__name__)
        """,
        file,
    )
    assert done.stdout.split("\n")[0] == "(2, 4) False HybridScript", done.stderr


def test_every_byte_is_checked(file: Path) -> None:
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        assert "archive/script.pt" in names and any(name.startswith("archive/parts/0/data/constants/") for name in names)
        offset = archive.getinfo("archive/script.pt").header_offset
    data[offset + 200] ^= 1
    file.write_bytes(data)
    with pytest.raises(PackageError, match=r"the entry 'script\.pt' has been altered or damaged"):
        load(file)


def test_a_pickle_in_a_part_is_refused(file: Path) -> None:
    def add(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        entries["parts/0/data/sample_inputs/model.pt"] = b"\x80\x02."

    with pytest.raises(PackageError, match="pickled data, which torchsmith never reads"):
        load(forge(file, add))


@pytest.mark.parametrize("entry", ["parts/0/code/x.py", "other.pt", "parts/x/version"])
def test_entries_that_are_not_ours_are_refused(file: Path, entry: str) -> None:
    with pytest.raises(PackageError, match="which torchsmith never writes"):
        load(forge(file, lambda entries, header: entries.update({entry: b"x"})))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda e, h: e.pop("script.pt"), "has no TorchScript"),
        (lambda e, h: e.update({"script.pt": b"nothing"}), "its TorchScript cannot be read"),
        (lambda e, h: h["parts"][0].update(path="nowhere"), "no submodule 'nowhere'"),
        (lambda e, h: h["parts"][0].pop("header"), "the header's parts cannot be read"),
        (lambda e, h: h.update(parts=[1]), "the header's parts cannot be read"),
        (lambda e, h: h.update(parts={"path": 1}), "the header's parts cannot be read"),
        (lambda e, h: h.pop("report"), "has no report"),
    ],
)
def test_a_header_that_is_wrong_is_a_sentence(file: Path, change: Any, why: str) -> None:
    with pytest.raises(PackageError, match=why):
        load(forge(file, change))


@pytest.mark.parametrize(("model", "word"), [(Writer, "save"), (Reader, "from_file"), (Waiter, "_c10d_functional")])
def test_torchscript_that_touches_files_is_neither_saved_nor_loaded(file: Path, model: type[nn.Module], word: str) -> None:
    script = torch.jit.script(model())
    with pytest.raises(PackageError, match=f"{word}.*not saved or loaded"):
        script_to_bytes(script)
    data = io.BytesIO()
    torch.jit.save(script, data)
    with pytest.raises(PackageError, match=f"m.pt2: its TorchScript has .*{word}"):
        load(forge(file, lambda entries, header: entries.update({"script.pt": data.getvalue()})))
    assert not Path("anywhere").exists()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("t = torch\n  t.save(x)", "save"),
        ("torch.\\\nsave(x)", "save"),
        ('getattr(torch, "save")(x)', "getattr"),
        ('getattr(torch, "sa" "ve")(x)', "getattr"),
        ("o = ops\n  o.c10d.send(x)", "ops"),
        ("x: __torch__.torch.classes.dist_c10d.Store", "classes.dist_c10d"),
    ],
)
def test_ways_around_are_seen(code: str, word: str) -> None:
    with pytest.raises(PackageError, match=f"its TorchScript has '.*{word}"):
        script_from_bytes(with_code(code))


def test_submodules_with_numbers_for_names_are_no_way_around() -> None:
    assert script_from_bytes(script_to_bytes(torch.jit.script(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))))(torch.ones(2)).shape == (
        2,
    )


def test_other_entries_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(PackageError, match=r"the entry 'extra/x', which torchsmith does not open"):
        script_from_bytes(with_code("", {"extra/x": b""}))
    with pytest.raises(PackageError, match="two entries of one name"):
        script_from_bytes(with_code("", {"code/model.py": b""}))


def with_code(code: str, more: dict[str, bytes] | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in [("code/model.py", code.encode()), *(more or {}).items()]:
            archive.writestr(f"m/{name}", content)
    return data.getvalue()


def test_the_header_says_what_is_in_it(file: Path, fast: HybridScript) -> None:
    header = read_header(str(file))
    assert header["report"]["script"] == "Counter" and [p["path"] for p in header["parts"]] == ["net"]
    assert "openvino" in header["backends"]
