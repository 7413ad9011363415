"""Reports as files, by the ending of their names."""

from __future__ import annotations

from pathlib import Path

from torchsmith.bench import gpu_report
from torchsmith.bench.plot import plot
from torchsmith.bench.report import Report, from_json, markdown, to_json
from torchsmith.errors import InvalidOption

PICTURES = (".png", ".svg", ".pdf")


def write(report: Report, path: str | Path) -> None:
    """Write JSON, Markdown or a plot, as the name ends: .json, .md, .png, .svg, .pdf. Raises InvalidOption for another ending."""
    path = check_ending(path)
    if path.suffix == ".json":
        path.write_text(to_json(report), encoding="utf-8")
    elif path.suffix == ".md":
        made = gpu_report.markdown(report) if report.machine.gpu else markdown(report)
        path.write_text(made, encoding="utf-8")
    else:
        plot(report, path)


def check_ending(path: str | Path) -> Path:
    """The path, if `write` can write it; to be asked before minutes go into a measurement. Raises InvalidOption."""
    path = Path(path)
    if path.suffix not in (".json", ".md", *PICTURES):
        raise InvalidOption(f"a report cannot be written to {path}; the name ends with .json, .md, {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise InvalidOption(f"a report cannot be written to {path}: there is no folder {path.parent}")
    return path


def read(path: str | Path) -> Report:
    """Read a report's JSON. Raises InvalidInput where it is none."""
    return from_json(Path(path).read_text(encoding="utf-8"))
