"""What the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torchsmith import debug

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 140  # where there is no terminal to fit


def stdout() -> Console:
    return _console(stderr=False)


def stderr() -> Console:
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def say(text: str, style: str = "") -> None:
    """A sentence as it is, brackets included, broken by the terminal only."""
    stdout().print(text, style=style, markup=False, soft_wrap=True)


def as_json(data: Any) -> None:
    print(json.dumps(data, indent=2, default=str))


def error(problem: BaseException | str) -> None:
    """One red sentence; below DEBUG=1 without the traceback."""
    if isinstance(problem, BaseException) and debug.level():
        stderr().print("".join(traceback.format_exception(problem)), markup=False, soft_wrap=True)
    stderr().print(f"error: {problem}", style="red", markup=False, soft_wrap=True)


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """What users are warned of, in one yellow line; deprecations inside other packages are not for them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        stderr().print(f"note: {message}", style="yellow", markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        if not debug.level():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


class Stages:
    """How long each stage took, and what the current one is at."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._current = ""
        self._since = time.perf_counter()

    def enter(self, text: str) -> None:
        """text: a stage's name, or the name, a comma and what it is at."""
        stage = text.partition(",")[0]
        if stage != self._current:
            self.leave()
            self._current = stage

    def leave(self) -> None:
        now = time.perf_counter()
        if self._current:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._since
        self._current, self._since = "", now

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


@contextmanager
def progress() -> Iterator[Stages]:
    """A spinner with the stage and the time so far on a terminal's standard error, gone at the end; the stages' times are kept."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    stages, console = Stages(), stderr()
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def hear(text: str) -> None:
            stages.enter(text)
            bar.update(task, description=text)

        with debug.listening(hear):
            try:
                yield stages
            finally:
                stages.leave()


def size(count: int) -> str:
    """A number of bytes for people: "812 B", "20.3 MiB"."""
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB"):
        count_in_unit = count / 1024 ** (1 if unit == "KiB" else 2)
        if count_in_unit < 1024:
            return f"{count_in_unit:.1f} {unit}"
    return f"{count / 2**30:.1f} GiB"


def facts(rows: Iterable[tuple[str, str, str]]) -> None:
    """Lines of a title and a text, each with the text's style, in two columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text, style in rows:
        table.add_row(title, Text(text, style))
    stdout().print(table)
