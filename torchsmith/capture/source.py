"""Which line of the user's code a node, or an error, comes from."""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterable
from types import TracebackType

import torch

_FRAME = re.compile(r'^\s*File "(?P<file>[^"\n]+)", line (?P<line>\d+)(?:, in .*)?$')
# torch's folder and torchsmith's
_OURS = tuple(os.path.dirname(os.path.abspath(m)) + os.sep for m in (torch.__file__, os.path.dirname(__file__)))


_LAYERS = os.path.join("torch", "nn", "")


def source_line(node: torch.fx.Node) -> str | None:
    """`file:line  code` of the innermost frame that is neither torch's nor ours; None where nothing was recorded.

    The code is left out where it is not known. Where every frame is torch's own (a bare `nn.Sequential`), the layer's line in
    torch.nn is told, since it still says which kind of layer it was.
    """
    trace = node.meta.get("stack_trace")
    return innermost(frames(trace)) if isinstance(trace, str) else None


def layer(node: torch.fx.Node) -> str | None:
    """The path of the innermost module that made a node, such as `layer1.0.conv1`; None where it is not known or the root."""
    stack = node.meta.get("nn_module_stack")
    if not isinstance(stack, dict) or not stack:
        return None
    path, _ = list(stack.values())[-1]
    return str(path).removeprefix("L['self']").strip(".") or None


def error_line(error: BaseException) -> str | None:
    """The same for an exception: where in the user's code it was raised, looking through what it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    best = None
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        line = innermost(_traceback_frames(found.__traceback__), own_only=True)
        best = line or best  # the cause lies nearer to the user's code than what was made of it
        found = found.__cause__ or found.__context__
    return best


def raised_here(error: BaseException) -> bool:
    """Whether an exception was raised by torchsmith's own code."""
    files = [file for file, _, _ in _traceback_frames(error.__traceback__)]
    return bool(files) and os.path.abspath(files[-1]).startswith(_OURS[1])


def innermost(trace: Iterable[tuple[str, int, str]], own_only: bool = False) -> str | None:
    """Render the last of (file, line number, code) that is the user's, or the last in torch.nn unless `own_only`."""
    listed = [f for f in trace if not f[0].startswith("<")]
    own = [f for f in listed if not is_torch(f[0])]
    layers = [f for f in listed if _LAYERS in f[0]] if not own_only else []
    if not own and not layers:
        return None
    file, line, code = own[-1] if own else layers[-1]
    code = code or linecache.getline(file, line).strip()
    return f"{shorten(file)}:{line}" + (f"  {code}" if code else "")


def is_torch(file: str) -> bool:
    return os.path.abspath(file).startswith(_OURS) or file.removeprefix("code/__torch__/").startswith("torch/")


def shorten(file: str) -> str:
    """A path relative to the working directory, or to the import path that it was found on."""
    if not os.path.isabs(file):
        return file
    roots = [os.getcwd(), *sorted((p for p in sys.path if p and os.path.isabs(p)), key=len, reverse=True)]
    for root in roots:
        if file.startswith(root.rstrip(os.sep) + os.sep) and f"{os.sep}site-packages{os.sep}" not in file[len(root) :]:
            return os.path.relpath(file, root)
    return file


def frames(trace: str) -> Iterable[tuple[str, int, str]]:
    """Read the text of a stack trace, outermost frame first."""
    lines = trace.splitlines()
    for i, line in enumerate(lines):
        if match := _FRAME.match(line):
            code = lines[i + 1].strip() if i + 1 < len(lines) and not _FRAME.match(lines[i + 1]) else ""
            yield match["file"], int(match["line"]), code


def _traceback_frames(trace: TracebackType | None) -> Iterable[tuple[str, int, str]]:
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        yield file, line, linecache.getline(file, line).strip()
        trace = trace.tb_next
