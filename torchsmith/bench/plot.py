"""A report as a picture: speed-ups over eager f32, a panel a precision, a group of bars a model and batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchsmith.bench.report import Report, busy
from torchsmith.bench.sides import SUBJECT

INK = "#24292f"
GRID = "#e3e6ea"
GROUPS_A_LINE = 4  # more would be too small to read
# ours stands out, peers are muted and told apart by lightness too
COLOURS = {
    "eager": "#c3c9d1",
    "torchscript": "#a3b8d0",
    "cudagraph": "#8fb39a",
    "inductor": "#e0b070",
    "max-autotune": "#b98a4a",
    "onnxruntime": "#8fb39a",
    "openvino": "#6d86b3",
    "nncf": "#5b6f9a",
    SUBJECT: "#d0402b",
}


def plot(report: Report, path: str | Path) -> None:
    """Write a PNG (or what the path's ending says). Raises OSError where it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys((model, batch) for model, batch, _ in report.cases()))
    lines = [groups[at : at + GROUPS_A_LINE] for at in range(0, len(groups), GROUPS_A_LINE)]
    panels = [(precision, line) for precision in _precisions(report) for line in lines]
    width = 1.6 + 0.36 * len(lines[0]) * (len(report.sides()) + 1)
    size = (max(width, 8.0), 0.9 + 2.5 * len(panels))
    with pyplot.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure, axes = pyplot.subplots(len(panels), 1, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axis, (precision, line) in zip(axes[:, 0], panels, strict=True):
            _panel(axis, report, precision, line)
            axis.set_xlim(-0.55, len(lines[0]) - 0.45)  # a shorter last line keeps the width of its bars
        handles, labels = _legend(axes[:, 0])
        figure.legend(
            handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, handlelength=1.2, columnspacing=1.4
        )
        figure.supxlabel(_footer(report), fontsize=8, color="#6a737d")
        figure.savefig(path, dpi=160, facecolor="white")
        pyplot.close(figure)


def _precisions(report: Report) -> list[str]:
    """Those that were asked for: where only bf16 was, eager f32 is there to count from, and needs no panel of its own."""
    asked = dict.fromkeys(row.precision for row in report.rows if row.side == SUBJECT)
    return list(asked or dict.fromkeys(row.precision for row in report.rows))


def _footer(report: Report) -> str:
    warning = f"; {reason}" if (reason := busy(report)) else ""
    where = report.machine.gpu or f"{report.machine.cpu}, {report.machine.threads} threads"
    return f"{where}, {report.date[:10]}{warning}"


def _legend(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every side once, though a side may be missing from some panels; ours last."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = sorted(found, key=lambda label: label == SUBJECT)
    return [found[label] for label in labels], labels


def _panel(axis: Any, report: Report, precision: str, groups: Sequence[tuple[str, int]]) -> None:
    sides = [side for side in report.sides() if any(r.side == side and r.precision == precision and r.stats for r in report.rows)]
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground="white")  # numbers stay legible on the dashed line
    width = 0.84 / max(1, len(sides))
    for place, side in enumerate(sides):
        at = [group + (place - (len(sides) - 1) / 2) * width for group in range(len(groups))]
        rows = [report.row(model, batch, precision, side) for model, batch in groups]
        heights = [(report.speedup(row, precision="f32") if row else None) for row in rows]
        bars = axis.bar(at, [h or 0.0 for h in heights], width * 0.92, label=side, color=COLOURS.get(side, "#999999"), zorder=2)
        labels = ["–" if h is None else f"{h:.1f}" for h in heights]
        style = {"fontweight": "bold", "color": COLOURS[SUBJECT]} if side == SUBJECT else {"color": INK}
        axis.bar_label(bars, labels, padding=2, fontsize=8, path_effects=[halo], **style)
    axis.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1.5)
    axis.set_xticks(range(len(groups)), [f"{model}\nbatch {batch}" for model, batch in groups])
    axis.set_ylabel("× eager f32")
    axis.set_title(precision, loc="left", fontweight="bold")
    axis.margins(y=0.14)
    axis.grid(axis="y", color=GRID)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
