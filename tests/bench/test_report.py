"""Reports: ratios, merging, tables, files, plots."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

from torchsmith.bench import check_ending, gpu_report, merge, read, table, write
from torchsmith.bench.machine import Machine, this_machine
from torchsmith.bench.measure import Stats
from torchsmith.bench.report import Report, Row, busy, from_json, markdown, to_json
from torchsmith.errors import InvalidInput, InvalidOption

MACHINE = Machine("A CPU", ("avx2",), 2, 2, 8.0, "Linux x86_64", "3.11.0", {"torch": "2.14.1", "openvino": "2026.4.1"})
PNG = b"\x89PNG"


def timed(model: str, batch: int, precision: str, side: str, ms: float) -> Row:
    return Row(model, batch, precision, side, "", 1.5e-7, 1e-4, Stats(ms, ms * 0.9, ms * 1.2, 50), batch, 2.5, 512.0)


ROWS = (
    timed("net", 1, "f32", "eager", 20.0),
    timed("net", 1, "f32", "openvino", 5.0),
    Row("net", 1, "f32", "inductor", why="there is no C++ compiler"),
    timed("net", 1, "f32", "torchsmith", 4.0),
    timed("net", 1, "bf16", "eager", 10.0),
    Row("net", 1, "bf16", "openvino", why="wrong: relative error 5.0e-01, allowed 1.0e-02", error=0.5, tolerance=0.01),
    timed("net", 1, "bf16", "torchsmith", 2.0),
)
REPORT = Report(MACHINE, "2026-01-02T03:04:05+00:00", "torchsmith bench net", ROWS)


def printed(report: Report, width: int = 80) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_speedups_are_ratios_of_medians() -> None:
    ours = REPORT.rows[-1]
    assert REPORT.speedup(ours) == pytest.approx(5)
    assert REPORT.speedup(ours, precision="f32") == pytest.approx(10)
    assert REPORT.speedup(REPORT.rows[3], over="openvino") == pytest.approx(1.25)
    assert REPORT.speedup(ours, over="openvino") is None, "a wrong side is no measure"
    assert REPORT.speedup(REPORT.rows[2]) is None, "an absent side has no speed"


def test_the_table_fits_80_columns_and_says_everything() -> None:
    text = printed(REPORT)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in ("net, batch 1", "torchsmith bf16", "1.5e-07", "3.60–4.80", "500", "10.00", "2.5", "512", "A CPU"):
        assert part in text, (part, text)
    assert "inductor f32: there is no C++ compiler" in text
    assert "openvino bf16: wrong: relative error 5.0e-01, allowed 1.0e-02" in text


def test_a_busy_machine_is_told_of() -> None:
    rows = tuple(dataclasses.replace(row, stats=row.stats and dataclasses.replace(row.stats, p90_ms=99.0)) for row in ROWS)
    assert busy(REPORT) is None and "busy machine" not in printed(REPORT)
    assert "busy machine (slow calls take" in printed(dataclasses.replace(REPORT, rows=rows))
    loaded = dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, load=6.5))
    assert "busy machine (load 6.5 on 2 cores" in printed(loaded)


def test_memory_has_no_column_where_it_was_not_measured() -> None:
    bare = dataclasses.replace(REPORT, rows=tuple(dataclasses.replace(row, peak_mb=None) for row in ROWS))
    assert "MiB" in printed(REPORT) and "MiB" not in printed(bare)


def test_markdown_of_int8_has_ratios_and_errors_of_those_that_quantize() -> None:
    rows = (timed("net", 1, "f32", "eager", 20.0), timed("net", 1, "int8", "nncf", 3.0), timed("net", 1, "int8", "torchsmith", 2.0))
    lines = markdown(dataclasses.replace(REPORT, rows=rows)).splitlines()
    assert lines[0].endswith("| nncf | **torchsmith** | × eager | × nncf | × eager f32 | error of nncf | error of torchsmith |")
    assert lines[3] == "| net | 1 | int8 | — | 3.00 | **2.00** | — | 1.50 | **10.00** | 1.5e-07 | 1.5e-07 |"


def test_markdown_has_a_line_a_case() -> None:
    lines = markdown(REPORT).splitlines()
    assert lines[0] == (
        "| model | batch | precision | eager | openvino | inductor | **torchsmith** | × eager | × openvino | × eager f32 |"
    )
    assert lines[2] == "| net | 1 | f32 | 20.0 | 5.00 | — | **4.00** | 5.00 | 1.25 | **5.00** |"
    assert lines[3] == "| net | 1 | bf16 | 10.0 | wrong | — | **2.00** | 5.00 | — | **10.00** |"
    assert "torchsmith bench net" in lines and "2026-01-02" in markdown(REPORT)


def test_json_keeps_everything() -> None:
    assert from_json(to_json(REPORT)) == REPORT
    data = json.loads(to_json(REPORT))
    assert data["rows"][-1]["speedup_f32"] == pytest.approx(10) and data["machine"]["cpu"] == "A CPU"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="this is no report of `torchsmith bench`"):
        from_json(text)


def test_merging_takes_the_later_of_two_measurements() -> None:
    later = Report(
        MACHINE,
        "2026-02-02T00:00:00+00:00",
        "torchsmith bench other",
        (timed("other", 8, "f32", "eager", 1.0), timed("net", 1, "f32", "torchsmith", 3.0)),
    )
    both = merge([REPORT, later])
    assert both.date == later.date and both.command.splitlines() == ["torchsmith bench net", "torchsmith bench other"]
    assert len(both.rows) == len(ROWS) + 1
    again = both.row("net", 1, "f32", "torchsmith")
    assert again is not None and again.median_ms == 3.0


def test_reports_of_different_machines_do_not_merge() -> None:
    other = dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, cpu="Another"))
    with pytest.raises(InvalidInput, match="different machines"):
        merge([REPORT, other])
    with pytest.raises(InvalidInput, match="no report to merge"):
        merge([])


def test_files_by_their_endings(tmp_path: Path) -> None:
    for ending in ("json", "md", "png"):
        write(REPORT, tmp_path / f"report.{ending}")
    assert read(tmp_path / "report.json") == REPORT
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == markdown(REPORT)
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"ends with \.json, \.md"):
        check_ending("report.xlsx")
    with pytest.raises(InvalidOption, match="there is no folder"):
        check_ending(tmp_path / "nowhere" / "report.json")


def test_a_plot_of_many_models_and_of_one_side(tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, model=f"net{number}") for number in range(5) for row in ROWS]
    for name, chosen in (("many", rows), ("eager", [ROWS[0]])):
        write(dataclasses.replace(REPORT, rows=tuple(chosen)), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_this_machine_says_what_matters_and_no_names() -> None:
    machine = this_machine()
    assert machine.cores >= 1 and machine.threads >= 1 and machine.memory_gb > 0
    assert machine.packages["torch"].startswith("2.")
    import getpass
    import platform

    text = json.dumps(dataclasses.asdict(machine))
    assert platform.node() not in text and f"/{getpass.getuser()}/" not in text


def on_a_gpu() -> Report:
    def row(side: str, precision: str, ms: float) -> Row:
        return dataclasses.replace(timed("net", 1, precision, side, ms * 2), stream=Stats(ms, ms, ms, 9))

    rows = [row("eager", "f32", 4.0), row("inductor", "f16", 0.5), row("torchsmith", "f16", 0.125)]
    slow = Row("net", 32, "f16", "inductor", why="it was not done after 150 s")
    wrong = Row("net", 32, "f16", "torchsmith", why="wrong: relative error 5.0e-01, allowed 1.0e-02", error=0.5, tolerance=0.01)
    return Report(dataclasses.replace(MACHINE, gpu="A GPU"), REPORT.date, "torchsmith bench net", (*rows, slow, wrong))


def test_a_gpus_table_has_both_times_and_the_best_peer(tmp_path: Path) -> None:
    report = on_a_gpu()
    write(report, tmp_path / "gpu.md")
    lines = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| model | batch | eager f32 | inductor f16 | **torchsmith f16** | **× best peer** | × eager f32 |"
    assert lines[2] == "| net | 1 | 4.00 / 8.00 | 0.500 / 1.00 | **0.125 / 0.250** | **4.00** | 32.00 |"
    assert lines[3] == "| net | 32 | — | — | **wrong** | **—** | — |"
    assert from_json(to_json(report)) == report and report.rows[2].items_per_second == pytest.approx(8000)
    write(report, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(PNG)


def test_a_gpus_table_for_the_terminal_says_why() -> None:
    from rich.console import Console

    console = Console(width=140, file=io.StringIO())
    console.print(gpu_report.table(on_a_gpu()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.125 / 0.250" in text and "inductor f16: it was not done after 150 s" in text and "A GPU" in text
    assert "net, batch 1: error 1.5e-07 of 1.0e-04 allowed" in text
