"""What was measured, as data, a table for the terminal, JSON, and Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchsmith.bench.machine import Machine
from torchsmith.bench.measure import Stats, quantile
from torchsmith.bench.sides import BASELINE, SUBJECT
from torchsmith.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

FORMAT = 1
# p90 / p10 of an idle machine's calls is 1.1, of a shared one's 1.5 to 3
NOISY_SPREAD = 1.5


@dataclass(frozen=True)
class Row:
    """One side on one case. Where `why` is not empty it was not timed, and `why` says the reason.

    error: relative, against float64; tolerance: what would have passed. stats: wall time of a call. items: the batch size.
    build_s: seconds to build it, imports excepted. peak_mb: MiB of a process that builds and runs it; on a GPU, of the device's
    memory in a call. note: how it was called. stream: on a GPU, time per call of calls one after another, by its own events.
    """

    model: str
    batch: int
    precision: str
    side: str
    why: str = ""
    error: float | None = None
    tolerance: float | None = None
    stats: Stats | None = None
    items: int = 1
    build_s: float | None = None
    peak_mb: float | None = None
    note: str = ""
    stream: Stats | None = None

    @property
    def median_ms(self) -> float | None:
        """What sides are compared by: the device's own time where it was taken, else the wall time."""
        found = self.stream or self.stats
        return found.median_ms if found else None

    @property
    def items_per_second(self) -> float | None:
        return self.items / self.median_ms * 1e3 if self.median_ms else None


@dataclass(frozen=True)
class Report:
    """Rows of one or more runs on one machine. date: ISO 8601, UTC. command: what makes the same report again."""

    machine: Machine
    date: str
    command: str
    rows: tuple[Row, ...]

    def row(self, model: str, batch: int, precision: str, side: str) -> Row | None:
        wanted = (model, batch, precision, side)
        return next((r for r in self.rows if (r.model, r.batch, r.precision, r.side) == wanted), None)

    def speedup(self, row: Row, over: str = BASELINE, precision: str | None = None) -> float | None:
        """How many times quicker `row` is than the side `over` on the same model and batch: the ratio of their medians.

        precision: of the side `over`; the row's own where it is None. None where either was not timed.
        """
        base = self.row(row.model, row.batch, precision or row.precision, over)
        if base is None or base.median_ms is None or row.median_ms is None:
            return None
        return base.median_ms / row.median_ms

    def cases(self) -> list[tuple[str, int, str]]:
        """(model, batch, precision), in the order of the rows."""
        return list(dict.fromkeys((r.model, r.batch, r.precision) for r in self.rows))

    def sides(self) -> list[str]:
        """Every side, ours last."""
        names = dict.fromkeys(r.side for r in self.rows)
        return [*(n for n in names if n != SUBJECT), *(n for n in names if n == SUBJECT)]


def merge(reports: Sequence[Report]) -> Report:
    """One report of several runs on one machine; a case measured twice is taken from the later one. Raises InvalidInput."""
    if not reports:
        raise InvalidInput("there is no report to merge")
    if odd := {str(r.machine) for r in reports} - {str(reports[0].machine)}:
        raise InvalidInput(
            f"these reports come from different machines or versions ({reports[0].machine} and {odd.pop()}); "
            "times are comparable within one machine only"
        )
    rows = {(r.model, r.batch, r.precision, r.side): r for report in reports for r in report.rows}
    latest = max(reports, key=lambda report: report.date)
    commands = dict.fromkeys(report.command for report in reports)
    return Report(latest.machine, latest.date, "\n".join(commands), tuple(rows.values()))


def to_json(report: Report) -> str:
    rows = []
    for row in report.rows:
        made = {
            "items_per_s": row.items_per_second,
            "speedup": report.speedup(row),
            "speedup_f32": report.speedup(row, precision="f32"),
        }
        rows.append({**dataclasses.asdict(row), **made})
    head = {"format": FORMAT, "machine": dataclasses.asdict(report.machine), "date": report.date, "command": report.command}
    return json.dumps({**head, "rows": rows}, indent=1, default=str) + "\n"


def from_json(text: str) -> Report:
    """Read what `to_json` wrote. Raises InvalidInput for another format."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"this is no report of `torchsmith bench`: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InvalidInput(f"this is no report of `torchsmith bench` in format {FORMAT}")
    machine = Machine(**{**data["machine"], "features": tuple(data["machine"]["features"])})
    return Report(machine, data["date"], data["command"], tuple(_row(r) for r in data["rows"]))


def _row(data: dict[str, Any]) -> Row:
    own = {field.name: data.get(field.name, field.default) for field in dataclasses.fields(Row)}
    return Row(**{**own, **{name: Stats(**data[name]) if data.get(name) else None for name in ("stats", "stream")}})


def table(report: Report) -> Group:
    """The report for a terminal 80 columns wide, to be printed with rich: a table for each model and batch."""
    from rich.console import Group
    from rich.text import Text

    cases = dict.fromkeys((row.model, row.batch) for row in report.rows)
    parts = [part for model, batch in cases for part in _case_table(report, model, batch)]
    reason = busy(report)
    advice = "other programs slow some sides more than others: measure again when it is idle"
    warning = [Text(f"{reason}; {advice}", "yellow")] if reason else []
    return Group(*parts, Text(str(report.machine), "dim"), *warning)


def busy(report: Report) -> str | None:
    """What says that other programs used the machine, or None."""
    machine = report.machine
    if machine.load > machine.cores:
        return f"busy machine (load {machine.load:.1f} on {machine.cores} cores when the run began)"
    if spread(report) > NOISY_SPREAD:
        return f"busy machine (slow calls take {spread(report):.1f} times what quick ones do, p90 / p10)"
    return None


def spread(report: Report) -> float:
    """How far calls of one side lie apart: p90 / p10, the median over all rows; 1 where nothing was timed."""
    found = sorted(row.stats.p90_ms / row.stats.p10_ms for row in report.rows if row.stats)
    return quantile(found, 0.5) if found else 1.0


def _case_table(report: Report, model: str, batch: int) -> list[Table | Text]:
    """One table, and below it why sides were not timed, and what became of the model in torchsmith."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [row for row in report.rows if (row.model, row.batch) == (model, batch)]
    with_memory = any(row.peak_mb for row in rows)
    made = Table(
        title=f"{model}, batch {batch}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("side", no_wrap=True)
    titles = [
        "error",
        "median\nms",
        "p10–p90\nms",
        "items\n/s",
        "×\neager",
        "× f32\neager",
        "build\ns",
        *["peak\nMiB"] * with_memory,
    ]
    for title in titles:
        made.add_column(title, justify="right", no_wrap=True)
    for precision in dict.fromkeys(row.precision for row in rows):
        for side in report.sides():
            row = report.row(model, batch, precision, side)
            if row is not None and row.stats is not None:
                cells = _cells(report, row)[: len(titles)]
                made.add_row(f"{side} {precision}", *cells, style="bold green" if side == SUBJECT else None)
        made.add_section()
    below = [Text(f"  {row.side} {row.precision}: {row.why}", "dim" if row.error is None else "red") for row in rows if row.why]
    # what became of the model decides how its times are to be read: ops left in PyTorch are PyTorch's
    below += [
        Text(f"  {SUBJECT}: {note}", "dim") for note in dict.fromkeys(row.note for row in rows if row.side == SUBJECT and row.note)
    ]
    return [made, *below, Text()]


def _cells(report: Report, row: Row) -> list[str]:
    assert row.stats is not None and row.error is not None, row
    return [
        f"{row.error:.1e}",
        short(row.stats.median_ms),
        f"{short(row.stats.p10_ms)}–{short(row.stats.p90_ms)}",
        short(row.items_per_second or 0.0),
        times(report.speedup(row)),
        times(report.speedup(row, precision="f32")),
        "—" if row.build_s is None else f"{row.build_s:.1f}",
        "—" if row.peak_mb is None else f"{row.peak_mb:.0f}",
    ]


def short(number: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def times(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}"


def markdown(report: Report) -> str:
    """A table for a README: a line a case, a column a side (median milliseconds), then ratios; how it was made below.

    Where there are sides that quantize, their errors follow.
    """
    peers = [side for side in report.sides() if side != SUBJECT]
    ratios = [side for side in (BASELINE, "torchscript", "openvino", "nncf") if side in peers]
    rounding = [side for side in report.sides() if any(row.side == side and row.precision == "int8" for row in report.rows)]
    head = ["model", "batch", "precision", *peers, f"**{SUBJECT}**", *(f"× {side}" for side in ratios), "× eager f32"]
    head += [f"error of {side}" for side in rounding]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i < 1 else "---:" for i in range(len(head))) + "|"]
    for model, batch, precision in report.cases():
        rows = {side: report.row(model, batch, precision, side) for side in (*peers, SUBJECT)}
        cells = [model, str(batch), precision, *(_markdown_time(rows[side]) for side in peers)]
        ours = rows[SUBJECT]
        cells.append(f"**{_markdown_time(ours)}**")
        cells += [times(report.speedup(ours, over=side) if ours else None) for side in ratios]
        cells.append(f"**{times(report.speedup(ours, precision='f32') if ours else None)}**")
        cells += [_markdown_error(rows[side]) for side in rounding]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Medians of one call in milliseconds; {report.machine}; {report.date[:10]}. Made with", "", "```"]
    return "\n".join([*lines, report.command, "```", ""])


def _markdown_time(row: Row | None) -> str:
    if row is None or row.stats is None:
        return "wrong" if row is not None and row.error is not None else "—"
    return short(row.stats.median_ms)


def _markdown_error(row: Row | None) -> str:
    return "—" if row is None or row.error is None else f"{row.error:.1e}"
