"""Looking into the compiler while it works. Three variables of the environment, read whenever they are needed:

| DEBUG | shows on stderr, besides what the numbers before it show |
|---|---|
| 1 | a line for each stage: its time, and what comes out |
| 2 | a line for each pass: its time, ops before and after |
| 3 | the program after each stage, and each engine's graph |
| 4 | the program after each pass that changed it |
| 5 | the user's source line of every node |
| 6 | what every node of the lowered program computes for the example inputs: mean, least, greatest |

`DUMP=folder` writes the same texts, with source lines, to numbered files there, whatever DEBUG is.

`VERIFY=1` checks the rules of programs and graphs after every pass. `VERIFY=2` also runs the program before and after every
pass of the lower stage on the example inputs, in float64, and stops at the first pass that changed a result.

A stage that fails by a bug of ours leaves a folder in which it can be run again; the `InternalError` names it.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torchsmith.config import Config

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchsmith.ir.graph import Graph

T = TypeVar("T")
_count = itertools.count()
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def level() -> int:
    """DEBUG, 0 where it is not set. What is no number was meant for another program."""
    return _number("DEBUG", 6)


def verifying() -> int:
    """VERIFY, likewise."""
    return _number("VERIFY", 2)


def _number(name: str, most: int) -> int:
    text = os.environ.get(name, "")
    return min(int(text), most) if text.isdecimal() else 0


def say(least: int, text: str) -> None:
    """Print a line where DEBUG is `least` or more."""
    if level() >= least:
        print(text, file=sys.stderr, flush=True)


def dump(name: str, text: Callable[[], str]) -> None:
    """Write a numbered file where DUMP names a folder."""
    if folder := os.environ.get("DUMP"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{next(_count):02d}-{name}.txt").write_text(text() + "\n", encoding="utf-8")


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside, `listener` hears what the road is at: the name of each stage as it begins, and its parts where they take long."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(text: str) -> None:
    """Say to whoever is listening what is being done now."""
    listener = _listener.get()
    if listener is not None:
        listener(text)


def is_heard() -> bool:
    """Whether anybody listens."""
    return _listener.get() is not None


class Road:
    """Runs the stages: times each, shows what it gives, and leaves a folder to run it again where it fails by a bug."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.program: ExportedProgram | None = None  # what the last stage gave

    def __call__(self, name: str, stage: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        from torchsmith.debug.repro import failing

        tell(name)
        started = time.perf_counter()
        with failing(name, self.program, self.config):
            value = stage(*args, **kwargs)
            self._look(name, value, time.perf_counter() - started)
        return value

    def _look(self, name: str, value: Any, seconds: float) -> None:
        program = self.program = getattr(value, "program", self.program)
        if program is None or not is_on():
            return
        from torchsmith.debug import programs

        say(1, f"{name:<14}{seconds:8.3f} s  {programs.summary(program)}")
        _show(3, name, program)
        if verifying():
            programs.verify(program, name)
        if name == "lower" and level() >= 6:
            say(6, programs.statistics(program))


@contextmanager
def road(config: Config) -> Iterator[Road]:
    """`with road(config) as stage: captured = stage("capture", capture, module, …)`, and so on."""
    yield Road(config)


class Watch:
    """Looks at a program after each pass of a stage. Raises VerificationError, naming the pass, where VERIFY finds a fault."""

    def __init__(self, stage: str, program: ExportedProgram) -> None:
        self.stage, self.program, self.text = stage, program, ""
        self.ops, self.results = 0, None
        if is_on():
            from torchsmith.debug import programs

            self.ops, self.text = programs.count(program), programs.to_text(program)
            self.results = programs.results(program) if verifying() >= 2 else None
        self.started = time.perf_counter()

    def __call__(self, name: str, program: ExportedProgram) -> None:
        """To be called after the pass `name`, which gave `program`."""
        if not is_on():
            return
        from torchsmith.debug import programs

        seconds, name = time.perf_counter() - self.started, f"{self.stage}-{name}"
        ops, text = programs.count(program), programs.to_text(program)
        say(2, f"  {name:<24}{seconds:8.3f} s  {self.ops} → {ops} ops")
        if text != self.text:  # constants get new names, so the text tells every change
            _show(4, name, program)
            if verifying():
                programs.verify(program, name)
            if self.results is not None:
                results = programs.results(program)
                programs.compare(self.results, results, name, programs.tolerance(program))
                self.results = results
        self.ops, self.text, self.started = ops, text, time.perf_counter()


def watch(stage: str, program: ExportedProgram) -> Watch:
    return Watch(stage, program)


def graph(name: str, graph: Graph) -> None:
    """Look at one engine's graph. Raises VerificationError where VERIFY finds a broken rule."""
    if level() >= 3 or os.environ.get("DUMP"):
        from torchsmith.ir.text import to_text

        say(3, f"── {name}\n{to_text(graph)}")
        dump(name, lambda: to_text(graph))
    if verifying():
        from torchsmith.ir.verify import verify

        verify(graph, name)


def is_on() -> bool:
    """Whether any of the variables asks for a look."""
    return level() > 0 or verifying() > 0 or bool(os.environ.get("DUMP"))


def _show(least: int, name: str, program: ExportedProgram) -> None:
    from torchsmith.debug import programs

    if level() >= least:
        say(least, f"── {name}\n{programs.to_text(program, with_sources=level() >= 5)}")
    dump(name, lambda: programs.to_text(program, with_sources=True))
