"""Packages to try, and ways to change them: by a careless copy, and by someone who signs what they changed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.runtime.toy import hybrid
from torchsmith.package import save
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.target import this_cpu

ROOT = Path(__file__).resolve().parents[2]


class Net(nn.Module):
    """Two linears with a ReLU between, a buffer, tied weights, a constant; dictionaries out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.arange(8.0)[::2])
        self.table = torch.ones(4) * float("inf")

    def forward(self, x: Tensor, *, flag: bool = True, y: Tensor | None = None) -> dict[str, Any]:
        hidden = torch.relu(self.first(x)) * self.scale
        out = self.second(hidden).clamp(max=self.table)
        return {"out": out.masked_fill(out > 1, float("-inf")), "rows": x.shape[0], "nested": (hidden, [None, 1.5])}


def compiled(engines: tuple[tuple[str, ...], ...] = (("linear", "relu"),)) -> tuple[Net, CompiledModule]:
    module = Net()
    program = hybrid(
        module,
        (torch.randn(2, 4),),
        {"flag": True},
        engines=engines,
        dynamic_shapes={"x": {0: Dim("rows", min=1, max=9)}, "flag": None},
    )
    report = {"target": this_cpu().to_json(), "segments": [], "refusals": [], "seconds": 1.5}
    return module, CompiledModule(program, report, inspect.signature(module.forward))


def package(path: Path) -> Path:
    """A file with a small package, the same each time."""
    path.write_bytes(_package())
    return path


@functools.cache
def _package() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(compiled()[1], Path(folder) / "m.pt2")
        return (Path(folder) / "m.pt2").read_bytes()


def forge(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """Change entries and header, and make all checksums right again. `change` gets both to work on."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    header = json.loads(entries.pop("extra/torchsmith.json"))
    change(entries, header)
    header["entries"] = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in entries.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**entries, "extra/torchsmith.json": json.dumps(header).encode()}.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def elsewhere(code: str, *args: Any) -> subprocess.CompletedProcess[str]:
    """Run code in another process, with this checkout on its path and `sys.argv[1:]` as given."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=240, cwd="/"
    )
