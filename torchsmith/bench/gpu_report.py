"""A report of a GPU's benchmark as a table: a line a case, a column a side, with the time of the device and of who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchsmith.bench.report import Report, Row, short, times
from torchsmith.bench.sides import BASELINE, EIGHT_BITS, SUBJECT

if TYPE_CHECKING:
    from rich.console import Group


def best_peer(report: Report, row: Row) -> Row | None:
    """The fastest side of others on the row's case, by the device's time; None where none was timed."""
    others = [r for r in report.rows if r.side not in (SUBJECT, *EIGHT_BITS.values())]
    peers = [r for r in others if (r.model, r.batch) == (row.model, row.batch) and r.median_ms]
    return min(peers, key=lambda r: r.median_ms or 0.0, default=None)


def columns(report: Report) -> tuple[list[str], list[list[str]]]:
    """Titles, and a line of cells for each model and batch. Times are milliseconds: the device's, then the caller's."""
    peers = [side for side in report.sides() if side != SUBJECT]
    precisions = {r.side: r.precision for r in report.rows}
    head = ["model", "batch", *(f"{side} {precisions[side]}" for side in peers), f"{SUBJECT} {precisions.get(SUBJECT, '')}".strip()]
    lines = []
    for model, batch in dict.fromkeys((r.model, r.batch) for r in report.rows):
        rows = {r.side: r for r in report.rows if (r.model, r.batch) == (model, batch)}
        ours = rows.get(SUBJECT)
        best, base = (best_peer(report, ours), rows.get(BASELINE)) if ours else (None, None)
        ratios = [times(ratio(best, ours)), times(ratio(base, ours))]
        lines.append([model, str(batch), *(cell(rows.get(side)) for side in (*peers, SUBJECT)), *ratios])
    return [*head, "× best peer", "× eager f32"], lines


def ratio(other: Row | None, ours: Row | None) -> float | None:
    if other is None or ours is None or not other.median_ms or not ours.median_ms:
        return None
    return other.median_ms / ours.median_ms


def cell(row: Row | None) -> str:
    """ "0.118 / 0.131", or what became of the side."""
    if row is None or row.stream is None or row.stats is None:
        return "—" if row is None or row.error is None else "wrong" if row.why.startswith("wrong") else "—"
    return f"{digits(row.stream.median_ms)} / {digits(row.stats.median_ms)}"


def digits(ms: float) -> str:
    return f"{ms:.3f}" if ms < 1 else short(ms)


def markdown(report: Report) -> str:
    """The table for a README, our side and its ratio over the best of the others in bold; how it was made below."""
    head, lines = columns(report)
    bold = {len(head) - 3, len(head) - 2}
    titles = [f"**{title}**" if place in bold else title for place, title in enumerate(head)]
    text = ["| " + " | ".join(titles) + " |", "|" + "|".join("---" if place < 1 else "---:" for place in range(len(head))) + "|"]
    for line in lines:
        text.append("| " + " | ".join(f"**{part}**" if place in bold else part for place, part in enumerate(line)) + " |")
    text += [
        "",
        "Medians in milliseconds: what the device takes for calls one after another / what a caller waits for one, the device idle",
        f"before it. Ratios are of the former. {report.machine}; {report.date[:10]}. Made with",
        *("", "```", report.command, "```", ""),
    ]
    return "\n".join(text)


def table(report: Report) -> Group:
    """The same for a terminal, with the errors and with why sides were not timed."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head, lines = columns(report)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, title in enumerate(head):
        justify = "left" if place == 0 else "right"
        made.add_column(title, justify=justify, style="bold green" if title.startswith(SUBJECT) else None)  # type: ignore[arg-type]
    for line in lines:
        made.add_row(*line)
    below = [
        Text(f"  {r.model}, batch {r.batch}, {r.side} {r.precision}: {r.why}", "dim" if r.error is None else "red")
        for r in report.rows
        if r.why
    ]
    notes = [
        Text(f"  {r.model}, batch {r.batch}: error {r.error:.1e} of {r.tolerance:.1e} allowed; {r.note}", "dim")
        for r in report.rows
        if r.side in (SUBJECT, *EIGHT_BITS.values()) and r.stats and r.error is not None and r.tolerance is not None
    ]
    how = Text("  milliseconds: of the device, calls one after another / of the caller, one call at a time", "dim")
    return Group(made, how, *notes, *below, Text(str(report.machine), "dim"))
