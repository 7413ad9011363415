"""What was measured once, for every later build: times of tactics, in a file that processes share and crashes do not hurt.

One JSON line a measurement, each with a checksum, each written by one call. A line that is damaged or cut off is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchsmith.backends.cuda.cache import OURS, cache_folder, source_hash, write_whole
from torchsmith.backends.cuda.cubins import triton_version
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.target import Target

try:
    import fcntl
except ImportError:  # Windows, where files are not compacted
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
SHIPPED = Path(__file__).parent / "timings"  # measured by us; files are called by architecture
_LINE = re.compile(rb'\{"crc":"([0-9a-f]{8})","row":(\{.*\})\}')
_WASTE = 2000  # lines that say nothing new, above which a file is written anew


@dataclass(frozen=True)
class Timing:
    """What is known of a tactic for a problem. None for both: it runs, and could not be timed.

    error: of its results, relative to float64. reason: why it cannot be taken.
    """

    microseconds: float | None = None
    error: float | None = None
    reason: str | None = None


class TimingCache:
    """The times for one target. file: where new ones go and old ones come from, None for neither."""

    def __init__(self, target: Target, file: Path | None, shipped: Path = SHIPPED) -> None:
        self.target, self.file = target, file
        self.damaged = 0
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        shipped_files = sorted(shipped.glob(f"{target.arch}*.jsonl")) if shipped.is_dir() else []
        for path in (*shipped_files, *([file] if file else [])):
            rows, damaged = read(path)
            self.damaged += damaged
            for row in rows:
                if row["arch"] == target.arch:
                    self._rows.setdefault((row["signature"], row["tactic"]), []).append(row)
            if path == file and len(rows) + damaged - len({_identity(r) for r in rows}) > _WASTE:
                compact(path)

    def get(self, signature: str, tactic: Tactic | None) -> Timing | None:
        """What was measured on this very chip, by the same kernels and versions."""
        wanted = {"chip": self.target.chip, "made_by": made_by(tactic)}
        rows = self._rows.get((signature, tactic_text(tactic)), [])
        return next((_timing(r) for r in reversed(rows) if all(r[k] == v for k, v in wanted.items())), None)

    def nearest(self, signature: str, tactic: Tactic | None) -> Timing | None:
        """What comes closest where nothing can be measured: of this chip or its architecture, by these versions or others."""
        rows = self._rows.get((signature, tactic_text(tactic)), [])
        made = made_by(tactic)
        ranked = [(r["made_by"] == made, r["chip"] == self.target.chip, i) for i, r in enumerate(rows)]
        return _timing(rows[max(ranked)[-1]]) if ranked else None

    def put(self, signature: str, tactic: Tactic | None, timing: Timing, about: str = "") -> None:
        """about: for people who look into the file."""
        row: dict[str, Any] = {
            **{"signature": signature, "tactic": tactic_text(tactic), "arch": self.target.arch, "chip": self.target.chip},
            **{"made_by": made_by(tactic), "us": timing.microseconds, "error": timing.error, "reason": timing.reason},
            "about": about[:160],
        }
        self._rows.setdefault((signature, row["tactic"]), []).append(row)
        if self.file is not None and not append(self.file, [row]):
            self.file = None  # it cannot be written; the build goes on without


def open_cache(target: Target, option: str | None) -> TimingCache:
    """By the option `timing_cache_path`: None for this user's own file, "" for none."""
    if option is None:
        return TimingCache(target, cache_folder() / "timings" / f"{target.arch}.jsonl")
    return TimingCache(target, Path(option) if option else None)


def tactic_text(tactic: Tactic | None) -> str:
    return "PyTorch" if tactic is None else json.dumps(tactic.to_json(), sort_keys=True)


@functools.cache
def _made_by(template: str) -> str:
    """Everything that may change a tactic's time and is not in its signature: sources and versions."""
    ours = source_hash(f"{OURS}.tactics.{template}") if template else ""
    return "/".join([ours, f"triton {triton_version()}", f"torch {torch.__version__}"])


def made_by(tactic: Tactic | None) -> str:
    return _made_by("" if tactic is None else tactic.template)


def _timing(row: Mapping[str, Any]) -> Timing:
    return Timing(row["us"], row["error"], row["reason"])


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[k] for k in ("signature", "tactic", "arch", "chip", "made_by"))


# ---- files -----------------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """A file's measurements in order, and how many lines are damaged. A file that is not there has none."""
    try:
        data = path.read_bytes()
    except OSError:
        return [], 0
    rows, damaged = [], 0
    for line in data.split(b"\n"):
        if line:
            row = _row(line)
            damaged += row is None
            rows += [row] if row is not None else []
    return rows, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    match = _LINE.fullmatch(line)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        return None
    row: dict[str, Any] = json.loads(match[2])
    return row if row.pop("format") == FORMAT else None


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps({"format": FORMAT, **row}).encode()
    return b'{"crc":"%08x","row":%s}\n' % (zlib.crc32(text), text)


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Add lines, each by one call, so that builders at work at the same time do not mix them. False where it cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _appending(path) as file:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")  # a builder that crashed left half a line
            for row in rows:
                os.write(file, _line(row))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[int]:
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
            if _is(path, file):
                yield file
                return
        finally:
            os.close(file)  # which unlocks it


def compact(path: Path) -> None:
    """Write the file anew with the last measurement of each kind, unless another process is at it."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, file):
                last = {_identity(row): row for row in read(path)[0]}
                write_whole(path, b"".join(map(_line, last.values())))
        finally:
            os.close(file)


def _is(path: Path, file: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        named, opened = os.stat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def merge(into: Path, *sources: Path) -> int:
    """Add to one file what others measured: a cache from a machine with a GPU, for builds on one without. Returns how many lines.

    Raises OSError where the file cannot be written.
    """
    known = {json.dumps(row, sort_keys=True) for row in read(into)[0]}
    new = []
    for source in sources:
        for row in read(source)[0]:
            text = json.dumps(row, sort_keys=True)
            if text not in known:
                known.add(text)
                new.append(row)
    if not append(into, new):
        raise PermissionError(f"{into} cannot be written")
    return len(new)
