from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from torchsmith.backends.cuda import timing_cache
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.backends.cuda.tactics.gemm import TEMPLATE
from torchsmith.backends.cuda.timing_cache import Timing, TimingCache, compact, merge, open_cache, read
from torchsmith.target import Target

H100 = Target("cuda", "sm_90", (), "NVIDIA H100 80GB HBM3")


def tactic() -> Tactic:
    import dataclasses

    numbers = {f.name: 16 for f in dataclasses.fields(TEMPLATE.config_type) if f.default is dataclasses.MISSING}
    return Tactic("gemm", TEMPLATE.config_type(**numbers))


def opened(path: Path, target: Target = H100) -> TimingCache:
    return TimingCache(target, path, shipped=path.parent / "none")


def test_what_was_put_is_there_in_the_next_build(tmp_path: Path) -> None:
    cache = opened(tmp_path / "sub" / "t.jsonl")
    assert cache.get("a", tactic()) is None
    cache.put("a", tactic(), Timing(3.5, 1e-4), "Linear")
    cache.put("a", None, Timing(reason="no memory"))
    for known in (cache, opened(tmp_path / "sub" / "t.jsonl")):
        assert known.get("a", tactic()) == Timing(3.5, 1e-4)
        assert known.get("a", None) == Timing(reason="no memory")
        assert known.get("b", tactic()) is None and known.damaged == 0


def test_the_last_measurement_counts(tmp_path: Path) -> None:
    for time in (3.0, 2.0):
        opened(tmp_path / "t").put("a", None, Timing(time))
    assert opened(tmp_path / "t").get("a", None) == Timing(2.0)


def test_other_chips_and_versions_count_only_where_nothing_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "t").put("a", None, Timing(3.0))
    for other in (Target("cuda", "sm_90"), Target("cuda", "sm_90", (), "NVIDIA H200")):
        assert opened(tmp_path / "t", other).get("a", None) is None
        assert opened(tmp_path / "t", other).nearest("a", None) == Timing(3.0)
    assert opened(tmp_path / "t", Target("cuda", "sm_80")).nearest("a", None) is None
    monkeypatch.setattr(timing_cache, "made_by", lambda tactic: "another version")
    assert opened(tmp_path / "t").get("a", None) is None
    assert opened(tmp_path / "t").nearest("a", None) == Timing(3.0)
    opened(tmp_path / "t").put("a", None, Timing(4.0))
    assert opened(tmp_path / "t").nearest("a", None) == Timing(4.0), "our version before another one"


def test_damaged_and_truncated_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for name in "abc":
        opened(path).put(name, None, Timing(1.0))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"1.0", b"9.0") + b"\xff\xfe nonsense\n" + third[:-20])
    cache = opened(path)
    assert (cache.damaged, cache.get("a", None), cache.get("b", None), cache.get("c", None)) == (3, Timing(1.0), None, None)
    cache.put("d", None, Timing(2.0))
    assert opened(path).get("d", None) == Timing(2.0), "a line after half a line stands by itself"


def test_builders_in_many_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    program = (
        "import sys; from pathlib import Path\n"
        "from torchsmith.backends.cuda.timing_cache import Timing, TimingCache, compact\n"
        "from torchsmith.target import Target\n"
        "path = Path(sys.argv[1]); cache = TimingCache(Target('cuda', 'sm_90'), path)\n"
        "for i in range(200):\n"
        "    cache.put(f'{sys.argv[2]}-{i}', None, Timing(float(i)))\n"
        "    i % 50 or compact(path)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), str(number)]) for number in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    rows, damaged = read(path)
    assert damaged == 0 and {r["signature"] for r in rows} == {f"{n}-{i}" for n in range(3) for i in range(200)}


def test_compaction_keeps_the_last_of_each(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for time in (3.0, 2.0, 1.0):
        for name in "ab":
            opened(path).put(name, None, Timing(time))
    compact(path)
    rows, damaged = read(path)
    assert [(r["signature"], r["us"]) for r in rows] == [("a", 1.0), ("b", 1.0)] and damaged == 0


def test_a_cache_measured_elsewhere_is_merged_once(tmp_path: Path) -> None:
    opened(tmp_path / "gpu").put("a", None, Timing(3.0))
    assert merge(tmp_path / "here", tmp_path / "gpu", tmp_path / "not there") == 1
    assert merge(tmp_path / "here", tmp_path / "gpu") == 0
    assert opened(tmp_path / "here").get("a", None) == Timing(3.0)


def test_times_that_are_shipped_are_read_and_never_written(tmp_path: Path) -> None:
    shipped = tmp_path / "timings"
    opened(shipped / "sm_90-h100.jsonl").put("a", None, Timing(3.0))
    opened(shipped / "sm_80.jsonl", Target("cuda", "sm_80")).put("a", None, Timing(5.0))
    before = [p.read_bytes() for p in sorted(shipped.iterdir())]
    cache = TimingCache(H100, None, shipped)
    assert cache.get("a", None) == Timing(3.0)
    cache.put("b", None, Timing(1.0))
    assert cache.get("b", None) == Timing(1.0) and [p.read_bytes() for p in sorted(shipped.iterdir())] == before


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = opened(tmp_path / "file" / "t")
    cache.put("a", None, Timing(1.0))
    assert cache.get("a", None) == Timing(1.0) and cache.file is None


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache(H100, None).file == tmp_path / "torchsmith" / "timings" / "sm_90.jsonl"
    assert open_cache(H100, "").file is None
    assert open_cache(H100, str(tmp_path / "x")).file == tmp_path / "x"


def test_lines_are_json_for_other_tools(tmp_path: Path) -> None:
    opened(tmp_path / "t").put("a", tactic(), Timing(1.5), "Linear")
    row = json.loads((tmp_path / "t").read_text())["row"]
    assert (row["us"], row["chip"], row["about"]) == (1.5, H100.chip, "Linear")
    assert json.loads(row["tactic"])["template"] == "gemm"
