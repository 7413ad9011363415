"""What calibration found, and the file that keeps it: readable, versioned, of one model."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import math
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.version import __version__

FORMAT = "torchsmith calibration"
VERSION = 2


@dataclass(frozen=True)
class Range:
    """Of one value. least, greatest: what was seen. threshold: the magnitude beyond which it saturates, 0 for all zeros."""

    least: float
    greatest: float
    threshold: float

    @property
    def is_signed(self) -> bool:
        return self.least < 0


@dataclass(frozen=True)
class Offsets:
    """A tensor of int8 that is mostly 0. data: its bytes, deflated, in base64."""

    shape: tuple[int, ...]
    data: str

    @staticmethod
    def of(tensor: Tensor) -> Offsets:
        packed = zlib.compress(tensor.cpu().contiguous().numpy().tobytes(), 1)
        return Offsets(tuple(tensor.shape), base64.b64encode(packed).decode("ascii"))

    def tensor(self) -> Tensor:
        """Raises ValueError or zlib.error where it is not what `of` made."""
        flat = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(self.data, validate=True))), dtype=torch.int8)
        if flat.numel() != math.prod(self.shape):
            raise ValueError(f"{flat.numel()} offsets for a weight of {self.shape}")
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Calibration:
    """model: `digest` of the lowered program. algorithm: CalibrationAlgo's value. batches: how many were seen.

    ranges: by the names of values. corrections: by the names of layers, what is added to each channel's bias. roundings: by the
    names of weights, how far their whole numbers are from the nearest ones. shares: by the names of values, what each number
    along the last dimension is divided by before it is rounded, and the weights behind it are multiplied by; ranges are of the
    quotients.
    """

    model: str
    algorithm: str
    batches: int
    ranges: Mapping[str, Range]
    corrections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    roundings: Mapping[str, Offsets] = field(default_factory=dict)
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def write(self, file: str | os.PathLike[str]) -> None:
        """In the place of what was there, at once or not at all. Raises InvalidOption where that cannot be done."""
        content = {"format": FORMAT, "version": VERSION, "torchsmith": __version__, **dataclasses.asdict(self)}
        with _writing(file) as (passing, target):
            passing.write_text(_lines(content), encoding="utf-8")
            os.replace(passing, target)


def check_writable(file: str | os.PathLike[str]) -> None:
    """To be asked before minutes go into calibration. Raises InvalidOption where a cache cannot be written there."""
    with _writing(file) as (passing, _):
        passing.touch(exist_ok=False)


@contextmanager
def _writing(file: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A name beside the file to write under, which is gone afterwards, and the file itself."""
    target = Path(file)
    passing = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield passing, target
        finally:
            passing.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidOption(f"the calibration cache {file} cannot be written: {reason}; name another cache_file") from error


def _lines(content: dict[str, Any]) -> str:
    """JSON with a line for every range and every layer's corrections."""
    parts = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            shown = f"{{\n{rows}\n  }}" if rows else "{}"
        else:
            shown = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(file: str | os.PathLike[str], model: str) -> Calibration:
    """What `Calibration.write` wrote for the model of that digest. Raises InvalidInput for any other file."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{file}: no such calibration cache; DataLoaderCalibrator(…, cache_file=…) writes one") from error
    except OSError as error:
        raise InvalidInput(f"the calibration cache {file} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInput(f"{file} is no calibration cache of torchsmith: {error}; calibrate again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInput(f"{file} is no calibration cache of torchsmith; calibrate again into another file")
    if content.get("version") != VERSION:
        written = f"torchsmith {content.get('torchsmith')} in format {content.get('version')}"
        raise InvalidInput(f"{file} was written by {written}, and this version reads format {VERSION}; calibrate again")
    if content.get("model") != model:
        raise InvalidInput(
            f"{file} is the calibration of another model, or of this one with other weights, options or versions; calibrate again"
        )
    try:
        ranges = {str(name): _range(entry) for name, entry in content["ranges"].items()}
        corrections = {str(name): _numbers(row) for name, row in content["corrections"].items()}
        roundings = {str(name): _offsets(entry) for name, entry in content["roundings"].items()}
        shares = {str(name): _shares(row) for name, row in content["shares"].items()}
        return Calibration(model, str(content["algorithm"]), int(content["batches"]), ranges, corrections, roundings, shares)
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise InvalidInput(f"{file} is damaged: {type(error).__name__}: {error}; calibrate again") from error


def _range(entry: Mapping[str, Any]) -> Range:
    found = Range(float(entry["least"]), float(entry["greatest"]), float(entry["threshold"]))
    is_zero = found.least == found.greatest == 0
    if not all(map(math.isfinite, dataclasses.astuple(found))) or found.least > found.greatest:
        raise ValueError(f"a range of {found}")
    if found.threshold < 0 or (found.threshold == 0) != is_zero:
        raise ValueError(f"a threshold of {found.threshold:g} for numbers from {found.least:g} to {found.greatest:g}")
    return found


def _numbers(row: list[Any]) -> tuple[float, ...]:
    found = tuple(map(float, row))
    if not all(map(math.isfinite, found)):
        raise ValueError("corrections that are not finite")
    return found


def _shares(row: list[Any]) -> tuple[float, ...]:
    found = tuple(map(float, row))
    if not all(math.isfinite(share) and share > 0 for share in found):
        raise ValueError("shares that are not positive")
    return found


def _offsets(entry: Mapping[str, Any]) -> Offsets:
    found = Offsets(tuple(map(int, entry["shape"])), str(entry["data"]))
    found.tensor()
    return found


def digest(program: ExportedProgram) -> str:
    """SHA-256 of what the program computes: its graph, and its weights, bit by bit."""
    found = hashlib.sha256()
    for node in program.graph.nodes:
        what = f"{node.op} {node.name} {node.target} {node.args} {dict(node.kwargs)} {_type(node.meta.get('val'))}\n"
        found.update(what.encode())
    for name, tensor in parameters_of(program).items():
        found.update(f"{name} {_type(tensor)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _type(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
