"""A benchmark on a GPU: every side in a process of its own, outputs checked first, timed in turns, written down as it goes.

`python -m torchsmith.bench.gpu --help`; it needs nothing beyond torch and what the models are made with.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from torchsmith.bench.check import COARSE_TOLERANCE, passes
from torchsmith.bench.files import read, write
from torchsmith.bench.gpu_sides import BESIDE_EIGHT_BITS, GPU_BUILDERS, GPU_SIDES
from torchsmith.bench.machine import Machine, this_machine
from torchsmith.bench.measure import FEWEST_ROUNDS, Stats, burst_calls
from torchsmith.bench.report import Report, Row, merge
from torchsmith.bench.sides import BASELINE, EIGHT_BITS, SUBJECT
from torchsmith.bench.station import Lost, Outcome, Remote, Station, Task
from torchsmith.errors import InvalidOption, TorchsmithError

# Models and their batches where none are asked for.
MODELS: Mapping[str, tuple[int, ...]] = {
    "efficientnet_b0": (1, 128),
    "resnet50": (1, 128),
    "mobilenetv3_large_100": (1, 128),
    "vit_base_patch16_224": (1, 32),
    "bert_base": (1, 32),
}
BATCHES = (1, 32)  # of other models
FACTOR = 1.1  # our error may be this times eager's own in the same precision
PEERS_FACTOR = 2.0  # peers get room for the maths that they chose
PROBE_CALLS = 3
# Of int8 and float8, whatever eager's own error is. Eight bits give a layer's input about 1 % of noise (40 dB), and weights with a
# step for each channel as much; of 50 layers in a row that is some 10 %, as weights that are random forget none of it. Three bits
# of mantissa make 4 % of each product, and of random weights 10 % of all that ViT-B does (--precision f8 --device cpu). A wrong
# scale, or a zero point that is left out, is an error of about 1.
TOLERANCE = {"int8": 0.15, "f8": 0.15}
SIDES_OF_EIGHT_BITS = {side: precision for precision, side in EIGHT_BITS.items()}


class Place(Protocol):
    """Where a side runs: a `Station` here, or a `Remote` one."""

    def build(self, task: Task, limit_s: float = 0.0) -> Outcome: ...
    def wall(self, calls: int) -> list[float]: ...
    def stream(self, calls: int) -> float: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class GpuOptions:
    """seconds: timing per model and batch, all sides together. limit_s: what building and checking a side may take.

    precision: of all sides but eager, which is float32, and our own in eight bits. "int8" and "f8" add torchsmith-int8 and
    torchsmith-f8, beside which the others are float16. factor: see FACTOR. compile: what torchsmith.compile gets besides.
    """

    models: tuple[str, ...] = tuple(MODELS)
    batches: tuple[int, ...] = ()
    sides: tuple[str, ...] = GPU_SIDES
    precision: str = "f16"
    seconds: float = 4.0
    limit_s: float = 150.0
    factor: float = FACTOR
    seed: int = 0
    device: str = "cuda"
    compile: Mapping[str, Any] = field(default_factory=dict)

    def cases(self) -> list[tuple[str, int]]:
        return [(model, batch) for model in self.models for batch in self.batches or MODELS.get(model, BATCHES)]

    def precision_of(self, side: str) -> str:
        if side in SIDES_OF_EIGHT_BITS:
            return SIDES_OF_EIGHT_BITS[side]
        return "f32" if side == BASELINE else BESIDE_EIGHT_BITS if self.precision in EIGHT_BITS else self.precision

    def with_eight_bits(self) -> GpuOptions:
        """The same, with our side in eight bits after our own where the precision asks for it."""
        added = EIGHT_BITS.get(self.precision)
        return self if added is None or added in self.sides else replace(self, sides=(*self.sides, added))


def compare_on_gpu(options: GpuOptions, places: Mapping[str, Place], done: Callable[[Report, Sequence[Row]], None]) -> Report:
    """The road of every model and batch. done(report so far, the case's rows) is called after each case.

    A side that fails, ours among them, keeps a row with the reason; a wrong one is not timed.
    """
    machine, rows = this_machine(gpu=options.device == "cuda"), list[Row]()
    report = report_of(machine, options, rows)
    for model, batch in options.cases():
        found = compare_case(model, batch, options, places)
        rows += found
        report = report_of(machine, options, rows)
        done(report, found)
    return report


def compare_case(model: str, batch: int, options: GpuOptions, places: Mapping[str, Place]) -> list[Row]:
    rows = {side: build_and_check(model, batch, side, options, places[side]) for side in options.sides}
    timed = time_in_turns({side: places[side] for side, row in rows.items() if not row.why}, options)
    for place in places.values():
        place.forget()
    return [replace(row, **timed.get(side, {})) for side, row in rows.items()]


def build_and_check(model: str, batch: int, side: str, options: GpuOptions, place: Place) -> Row:
    """One side, built and compared with float64; why says what is wrong with it."""
    precision = options.precision_of(side)
    say(f"{model}, batch {batch}: building {side} {precision}")
    found = place.build(Task(model, batch, side, precision, options.device, dict(options.compile)), options.limit_s)
    allowed = TOLERANCE[precision] if side in SIDES_OF_EIGHT_BITS else COARSE_TOLERANCE[precision]
    if side not in (BASELINE, *SIDES_OF_EIGHT_BITS) and found.eager_error is not None:
        allowed = found.eager_error * (options.factor if side == SUBJECT else PEERS_FACTOR)
    why = found.why
    if not why and (found.error is None or not passes(found.error, allowed)):
        why = f"wrong: relative error {found.error:.2e}, allowed {allowed:.2e}"
    if why:
        say(f"  {side}: {why}")
    row = Row(model, batch, precision, side, why, found.error, allowed if found.error is not None else None)
    return replace(row, items=found.items, build_s=found.build_s, peak_mb=found.peak_mb, note=found.note)


def time_in_turns(places: Mapping[str, Place], options: GpuOptions) -> dict[str, dict[str, Any]]:
    """Wall and stream times of every side, in rounds of a burst each, each in an order of its own; as `Row` has them, by side."""
    walls: dict[str, list[float]] = {side: [] for side in places}
    streams: dict[str, list[float]] = {side: [] for side in places}
    lost: dict[str, str] = {}

    def burst(side: str, calls: int) -> None:
        try:
            walls[side] += places[side].wall(calls)
            streams[side].append(places[side].stream(calls))
        except Lost as why:
            lost[side] = str(why)

    for side in places:
        burst(side, PROBE_CALLS)
    once = {side: min(times) / 1e3 for side, times in walls.items() if times and side not in lost}
    for times in (*walls.values(), *streams.values()):
        times.clear()
    bursts = {side: burst_calls(seconds) for side, seconds in once.items()}
    a_round = sum(2 * once[side] * (calls + 1) for side, calls in bursts.items())
    rounds = max(FEWEST_ROUNDS, round(options.seconds / max(a_round, 1e-9)))
    order, rng = list(bursts), random.Random(options.seed)
    for _ in range(rounds):
        rng.shuffle(order)
        for side in order:
            if side not in lost:
                burst(side, bursts[side])
    timed = {side: {"stats": Stats.of(walls[side]), "stream": Stats.of(streams[side])} for side in bursts if side not in lost}
    return {**timed, **{side: {"why": why} for side, why in lost.items()}}


def report_of(machine: Machine, options: GpuOptions, rows: Sequence[Row]) -> Report:
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Report(machine, date, command(options), tuple(rows))


def command(options: GpuOptions) -> str:
    """The command line that makes the report again."""
    parts = ["torchsmith bench", *options.models, "--device cuda"]
    parts += [f"--batch {','.join(map(str, options.batches))}"] if options.batches else []
    parts += ["--precision", options.precision, "--peers", ",".join(s for s in options.sides if s != SUBJECT)]
    return " ".join([*parts, f"--seconds {options.seconds:g}"])


def line(row: Row) -> str:
    """A row as one line of JSON, in milliseconds."""
    times = {name: round(s.median_ms, 4) for name, s in (("stream_ms", row.stream), ("wall_ms", row.stats)) if s}
    rest = {"error": row.error, "tolerance": row.tolerance, "build_s": row.build_s, "peak_mb": row.peak_mb, "why": row.why}
    head = {"model": row.model, "batch": row.batch, "side": row.side, "precision": row.precision}
    return json.dumps({**head, **times, **{k: v for k, v in rest.items() if v not in (None, "")}, "note": row.note})


def run_on_gpu(options: GpuOptions, out: Path | None = None, processes: bool = True, show: Callable[[str], None] = print) -> Report:
    """Compare on this machine's GPU. out: a folder for gpu-<date>.json, written after every case. processes: one for each side.

    What an earlier run of the day left in that file stays, but for the cases that are measured again.
    Raises InvalidOption for a name that is not known, and where there is no GPU.
    """
    options = options.with_eight_bits()
    if unknown := [side for side in options.sides if side not in GPU_BUILDERS]:
        raise InvalidOption(f"bench has no side {unknown[0]!r} on a GPU; it has {', '.join(GPU_BUILDERS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InvalidOption("PyTorch finds no GPU here; `torchsmith bench` without --device cuda measures the CPU")
    remotes = {side: Remote() for side in options.sides}
    if processes:
        for remote in remotes.values():
            remote.start()
    places: Mapping[str, Place] = remotes if processes else {side: Station() for side in options.sides}
    before: dict[Path, Report] = {}

    def done(report: Report, rows: Sequence[Row]) -> None:
        for row in rows:
            show(line(row))
        if out is not None:
            file = file_in(out, report)
            if file not in before and file.exists():
                before[file] = read(file)
            write(joined(before.get(file), report), file)

    try:
        report = compare_on_gpu(options, places, done)
        return joined(before.get(file_in(out, report)) if out else None, report)
    finally:
        for place in places.values():
            place.close()


def joined(before: Report | None, report: Report) -> Report:
    """Both, each case from one run: the later one's. What another machine, or other versions, measured is left out."""
    if before is None or str(before.machine) != str(report.machine):
        return report
    again = {(row.model, row.batch) for row in report.rows}
    kept = replace(before, rows=tuple(row for row in before.rows if (row.model, row.batch) not in again))
    return merge([kept, report])


def file_in(out: Path, report: Report) -> Path:
    return out / f"gpu-{report.date[:10]}.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def failures(report: Report) -> list[str]:
    """A sentence for each case on which a side of our own was not timed."""
    ours = [r for r in report.rows if r.side in (SUBJECT, *SIDES_OF_EIGHT_BITS) and r.why]
    return [f"{r.model}, batch {r.batch}: {r.why}" for r in ours]


def names(text: str, known: Collection[str] = ()) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parser() -> argparse.ArgumentParser:
    defaults = GpuOptions()
    made = argparse.ArgumentParser(prog="python -m torchsmith.bench.gpu", description=__doc__.partition("\n")[0] if __doc__ else "")
    made.add_argument("--models", default=",".join(MODELS), help="timm names, transformers names, bert_base or file.py:function")
    made.add_argument("--batch", default="", help="batch sizes; by default 1 and 128 of convolutional networks, 1 and 32 of others")
    made.add_argument("--sides", default=",".join(GPU_SIDES), help=f"of {', '.join(GPU_BUILDERS)}")
    made.add_argument("--precision", default=defaults.precision, help="f16, bf16, or int8, f8: f16 and ours beside it")
    made.add_argument("--seconds", type=float, default=defaults.seconds, help="timing per model and batch, all sides together")
    made.add_argument("--limit", type=float, default=defaults.limit_s, help="seconds that building one side may take")
    made.add_argument("--factor", type=float, default=FACTOR, help="our error may be this times eager's in the same precision")
    made.add_argument("--compile", default="{}", help="options of torchsmith.compile besides, as JSON")
    made.add_argument("--in-process", action="store_true", help="all sides in this process, with no limits")
    made.add_argument("--device", default="cuda", help="cpu tries the benchmark itself")
    made.add_argument("--out", type=Path, help="a folder for gpu-<date>.json, written after every case")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line of JSON for each side of a case when the case is done. Gives 1 where our own side failed or was wrong."""
    given = parser().parse_args(arguments)
    options = GpuOptions(
        models=names(given.models),
        batches=tuple(map(int, names(given.batch))),
        sides=names(given.sides),
        precision=given.precision,
        seconds=given.seconds,
        limit_s=given.limit,
        factor=given.factor,
        device=given.device,
        compile=json.loads(given.compile),
    )
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    try:
        report = run_on_gpu(options, given.out, not given.in_process, lambda text: print(text, flush=True))
    except TorchsmithError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if given.out is not None and importlib.util.find_spec("matplotlib"):
        for ending in (".md", ".png"):
            write(report, file_in(given.out, report).with_suffix(ending))
    print(json.dumps({"machine": dataclasses.asdict(report.machine), "date": report.date}), flush=True)
    for sentence in failures(report):
        say(sentence)
    return 1 if failures(report) else 0


if __name__ == "__main__":
    sys.exit(main())
