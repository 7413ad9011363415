"""How far something slow is: a bar in a terminal, or lines for whoever listens to the road."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torchsmith import debug

_TELL_SECONDS = 0.5  # between two lines


class Progress:
    """Counts what is done of what is expected; both may grow. show: called with a text and the share of the whole."""

    def __init__(self, name: str, show: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self._show, self._clock = name, show, clock
        self.done = self.expected = 0
        self._started = self._shown = clock()

    def expect(self, more: int) -> None:
        self.expected += more

    def advance(self) -> None:
        self.done += 1
        now = self._clock()
        if now - self._shown >= _TELL_SECONDS or self.done == self.expected:
            self._shown = now
            self._show(self.text(), self.done / max(1, self.expected))

    def text(self) -> str:
        left = (self._clock() - self._started) / max(1, self.done) * (self.expected - self.done)
        return f"{self.name}, {self.done} of {self.expected}, {left:.0f} s left"


@contextmanager
def progress_of(name: str) -> Iterator[Progress]:
    """A bar on standard error where that is a terminal and nobody listens; else what is said goes to the listener."""
    if debug.is_heard() or not sys.stderr.isatty():
        yield Progress(name, lambda text, share: debug.tell(text))
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield Progress(name, lambda text, share: debug.tell(text))
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(name, total=1.0)
        yield Progress(name, lambda text, share: bar.update(task, description=text, completed=share))
