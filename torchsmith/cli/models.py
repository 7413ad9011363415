"""MODEL on the command line: a name that `torchsmith bench` knows, `file.py:function`, or a file with a model in it."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchsmith.errors import InvalidInput, InvalidOption

if TYPE_CHECKING:
    from torchsmith.bench.models import Inputs

MODEL_HELP = "a timm name, a transformers name, file.py:function, an exported program (.pt2) or a TorchScript file"
FILES = (".pt2", ".pt", ".pth", ".ts", ".torchscript", ".zip")
INPUT_FORM = "[NAME=]SIZE,SIZE,...[:DTYPE]|[NAME]:=VALUE"
INPUT_HELP = (
    "one input's sizes and element type, such as 1,3,224,224 or mask=1,128:int64; a size that may change is a range, 1..16; "
    "for an input that is no tensor its value, :=16000 or flag:=true; once for each input"
)
BATCH_HELP = "the batch size of a model made by name, or a range such as 1..16"


@dataclass(frozen=True)
class Given:
    """What `torchsmith.compile` is called with. inputs: None where the model brings its own."""

    name: str
    module: Any
    inputs: Sequence[Any] | None = None
    kwarg_inputs: dict[str, Any] = field(default_factory=dict)


def read(model: str, batch: str | None, inputs: Sequence[str]) -> Given:
    """Make or read the model. Raises InvalidOption and InvalidInput where it cannot be found or its inputs are not known."""
    if is_file(model):
        if batch is not None:
            raise InvalidOption(
                f"--batch is for models made by name; the inputs of {model} are described with --input {INPUT_FORM}"
            )
        return _from_file(Path(model), inputs)
    return _from_name(model, batch, inputs)


def is_file(model: str) -> bool:
    """Whether MODEL is a file rather than a name. Raises InvalidInput where it looks like one and there is none."""
    path = Path(model)
    if ".py:" in model or not (path.suffix in FILES or path.is_file()):
        return False
    if not path.is_file():
        raise InvalidInput(f"there is no file {model}; MODEL is {MODEL_HELP}")
    return True


@contextlib.contextmanager
def named_models() -> Iterator[None]:
    """Models by name come from packages that torchsmith does not require."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name not in ("timm", "transformers", "torchvision"):
            raise
        raise InvalidOption(
            f"models by name need the package {missing.name}, which is not installed; pip install 'torchsmith[bench]', "
            "or give the model as file.py:function"
        ) from missing


def _from_name(model: str, batch: str | None, inputs: Sequence[str]) -> Given:
    from torchsmith.bench.models import load

    least, most = sizes("--batch", batch or "1")
    with named_models():
        found = load(model)
        if batch is not None and not found.batched:
            raise InvalidOption(
                f"{model} does not take a batch size: its function has no parameter `batch`; describe the inputs with --input"
            )
        made = found.module(most)
        if inputs:
            return Given(model, made, *described(inputs))
        own = found.inputs(most, 0)
        if least == most:
            return Given(model, made, list(own.args), own.kwargs)
        return Given(model, made, *_with_batch(found.inputs(least, 0), own, least, most))


def _with_batch(smaller: Inputs, larger: Inputs, least: int, most: int) -> tuple[list[Any], dict[str, Any]]:
    """The larger inputs, with a range for every size that followed the batch size."""
    import torch
    from torch.utils import _pytree as pytree

    from torchsmith.inputs import Input

    batch = torch.export.Dim("batch", min=least, max=most)

    def ranged(small: Any, large: Any) -> Any:
        if not isinstance(large, torch.Tensor) or small.shape == large.shape:
            return large
        pairs = zip(small.shape, large.shape, strict=True)
        return Input([batch if pair == (least, most) else pair[1] for pair in pairs], dtype=large.dtype, torch_tensor=large)

    small, large = (list(smaller.args), smaller.kwargs), (list(larger.args), larger.kwargs)
    args, kwargs = pytree.tree_map(ranged, small, large)
    return args, kwargs


def _from_file(path: Path, inputs: Sequence[str]) -> Given:
    import torch

    kind = kind_of(path)
    if kind == "package":
        raise InvalidInput(f"{path} is compiled already; `torchsmith inspect {path}` shows what is in it")
    if kind == "exported":
        return Given(path.name, torch.export.load(path), *(described(inputs) if inputs else (None, {})))
    if kind == "torchscript":
        if not inputs:
            raise InvalidInput(
                f"{path} is TorchScript, which does not say what its inputs are; describe each with --input {INPUT_FORM}"
            )
        script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return Given(path.name, script, *described(inputs))
    if kind == "checkpoint":
        raise InvalidInput(
            f"{path} was written by torch.save: it has weights or a pickled object, and no program; write a function that makes "
            "the model and loads them, and give it as file.py:function"
        )
    from torchsmith.package.archive import read_header

    read_header(str(path))  # raises, and says what is wrong with the file
    raise AssertionError(f"{path} is of unknown kind and reads as a package")


def kind_of(path: Path) -> str:
    """What a file is, by the names in its archive: "package", "exported", "torchscript", "checkpoint" or "unknown"."""
    from torchsmith.package.archive import HEADER

    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return "unknown"
    if HEADER in names:
        return "package"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "exported"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    return "checkpoint" if "data.pkl" in names else "unknown"


def described(inputs: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """--input, each time it was given, as positional and keyword inputs."""
    read = [_input(text) for text in inputs]
    args = [given for name, given in read if not name]
    kwargs = {name: given for name, given in read if name}
    return args, kwargs


def _input(text: str) -> tuple[str, Any]:
    from torchsmith.inputs import Input

    if constant := re.fullmatch(r"(?P<name>[A-Za-z_]\w*)?:=(?P<value>.*)", text.strip()):
        return constant["name"] or "", _value(text, constant["value"])
    found = re.fullmatch(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>[^:=]*)(?::(?P<dtype>[\w.]+))?", text.strip())
    if found is None:
        raise InvalidOption(f"--input {text} cannot be read; it takes {INPUT_FORM}, such as 1,3,224,224 or mask=1..8,128:int64")
    ranges = [sizes("--input", part) for part in found["sizes"].split(",") if part.strip()]
    least, most = tuple(low for low, _ in ranges), tuple(high for _, high in ranges)
    return found["name"] or "", Input(min_shape=least, max_shape=most, dtype=found["dtype"] or "float32")


def _value(text: str, value: str) -> Any:
    """A number, true, false, null or a text in double quotes. Raises InvalidOption."""
    try:
        read = json.loads(value)
    except ValueError:
        read = []
    if isinstance(read, (list, dict)):
        raise InvalidOption(
            f"--input {text} cannot be read; after := it takes a number, true, false, null or a text in double quotes"
        )
    return read


def sizes(flag: str, text: str) -> tuple[int, int]:
    """ "8" or "1..8" as the least and the most. Raises InvalidOption."""
    found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", text)
    if found is None:
        raise InvalidOption(f"{flag} has the size {text!r}; it takes a whole number, or a range such as 1..16")
    least = int(found[1])
    most = int(found[2]) if found[2] else least
    if least > most or (flag == "--batch" and least < 1):
        raise InvalidOption(f"{flag} has the size {text!r}, which is empty; the first number must not be larger than the second")
    return least, most
