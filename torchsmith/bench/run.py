"""The road of a benchmark: make the model, build the sides, check them, time them in turns, report."""

from __future__ import annotations

import copy
import datetime
import difflib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchsmith.bench.check import outputs_of, passes, reference, stop_if_wrong, tolerance, worst_error
from torchsmith.bench.int8_sides import INT8, PEERS, QUANTIZERS, Quantizer, calibrated
from torchsmith.bench.machine import this_machine
from torchsmith.bench.measure import Call, Stats, interleave
from torchsmith.bench.memory import peak_memory_mb
from torchsmith.bench.models import Inputs, Model, load
from torchsmith.bench.report import Report, Row
from torchsmith.bench.sides import (
    BASELINE,
    BUILDERS,
    PRECISIONS,
    SUBJECT,
    Absent,
    Builder,
    Built,
    forget_compiled,
    import_packages,
    peers_may_fail,
)
from torchsmith.errors import InvalidOption

BATCHES = (1, 8)
CHECK_SEEDS = (0, 1)  # two sets of inputs: outputs that do not follow them are found wrong

Say = Callable[[str, float], None]  # what is being done, and how much of the whole is (0 to 1)


@dataclass(frozen=True)
class Options:
    """seconds: timing per model and batch, all sides together. memory: also measure each side's peak in its own process."""

    batches: tuple[int, ...] = BATCHES
    precisions: tuple[str, ...] = ("f32", "bf16")
    peers: tuple[str, ...] = PEERS
    seconds: float = 20.0
    memory: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model at one batch size, with what its outputs ought to be."""

    model: Model
    batch: int
    module: nn.Module
    checks: tuple[tuple[Inputs, list[Tensor]], ...]

    @property
    def inputs(self) -> Inputs:
        return self.checks[0][0]

    def row(self, precision: str, side: str) -> Row:
        return Row(
            self.model.name, self.batch if self.model.batched else self.inputs.items, precision, side, items=self.inputs.items
        )


@dataclass(frozen=True)
class Candidate:
    """A side that was tried: its row so far and, where it can be timed, the way to call it."""

    row: Row
    built: Built | None = None

    @property
    def key(self) -> str:
        return f"{self.row.side} {self.row.precision}"


@dataclass(frozen=True)
class Step:
    """Where a benchmark stands; knows how to say it. done, of: parts of the whole."""

    say: Say
    done: float
    of: float

    def __call__(self, text: str, share: float = 0.0) -> None:
        self.say(text, min(1.0, (self.done + share) / self.of))


def run_bench(
    model: str | Sequence[str],
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] = ("f32", "bf16"),
    peers: Sequence[str] = PEERS,
    *,
    seconds: float = 20.0,
    memory: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Compare torchsmith with `peers` on models given by name, on this machine, outputs first.

    model: timm names, transformers names or `file.py:function`, several as a list or with commas. precisions: of "f32",
    "bf16", "f16", "int8" (sides that quantize, by the same data). seconds: timing per model and batch. memory: measure peaks too,
    each side in a fresh process. seed: of the order in which sides take turns. progress: show a bar on standard error.
    Raises InvalidOption for what is not known, VerificationError for a wrong output of torchsmith's, and torchsmith's own errors.
    """
    names = [name for given in ([model] if isinstance(model, str) else model) for name in given.split(",") if name]
    options = Options(
        _positive("batch", batches),
        _known("precision", precisions, (*PRECISIONS, INT8)),
        _known("peer", peers, PEERS),
        seconds,
        memory,
        seed,
    )
    if not names:
        raise InvalidOption("bench needs a model: a timm name, a transformers name or file.py:function")
    models = [load(name) for name in names]
    if not progress:
        return compare(models, options)
    from torchsmith.bench.progress import progress_bar

    with progress_bar() as say:
        return compare(models, options, say=say)


def compare(
    models: Sequence[Model],
    options: Options,
    builders: Mapping[str, Builder] = BUILDERS,
    say: Say = lambda text, share: None,
    quantizers: Mapping[str, Quantizer] = QUANTIZERS,
) -> Report:
    """The road itself, for every model and batch. quantizers: how sides are built in int8; builders: in other precisions."""
    cases = [(model, batch) for model in models for batch in (options.batches if model.batched else (1,))]
    rows: list[Row] = []
    machine = this_machine()  # first, as its load is what others do
    with torch.no_grad():
        for done, (model, batch) in enumerate(cases):
            quantizing = {name: calibrated(quantizer, model, batch) for name, quantizer in quantizers.items()}
            rows += compare_one(model, batch, options, builders, quantizing, Step(say, done, len(cases)))
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Report(machine, date, command([m.name for m in models], options), tuple(rows))


def compare_one(
    model: Model, batch: int, options: Options, builders: Mapping[str, Builder], quantizing: Mapping[str, Builder], step: Step
) -> list[Row]:
    subject = prepare(model, batch, step)
    candidates = build_and_check(subject, options, builders, quantizing, step)
    timed = time_in_turns(candidates, subject, options, step)
    forget_compiled()
    return measure_memory(timed, subject, options, step)


def prepare(model: Model, batch: int, step: Step) -> Subject:
    """Make the model and its inputs, and run them in float64."""
    step(f"{model.name}, batch {batch}: reference in float64")
    module = model.module(batch)
    inputs = [model.inputs(batch, seed) for seed in CHECK_SEEDS]
    return Subject(model, batch, module, tuple((given, reference(module, given)) for given in inputs))


def build_and_check(
    subject: Subject, options: Options, builders: Mapping[str, Builder], quantizing: Mapping[str, Builder], step: Step
) -> list[Candidate]:
    """Build every side in every precision; the baseline first, as its error is what 16-bit sides are measured by.

    Peers that cannot be built, or are wrong, keep a row that says so. Raises VerificationError where ours is wrong.
    """
    found: list[Candidate] = []
    eager_errors: dict[str, float] = {}
    plan = sides_and_precisions(options, builders, quantizing)
    for index, (precision, name) in enumerate(plan):
        step(f"{subject.model.name}, batch {subject.batch}: building {name} {precision}", 0.5 * index / len(plan))
        builder = (quantizing if precision == INT8 else builders)[name]
        tried = try_side(subject, name, builder, precision, eager_errors.get(precision))
        if name == BASELINE and tried.row.error is not None:
            eager_errors[precision] = tried.row.error
        found.append(tried)
    return found


def sides_and_precisions(options: Options, builders: Collection[str], quantizing: Collection[str]) -> list[tuple[str, str]]:
    """(precision, side) in the order in which they are built: precision by precision, the baseline first and ours last.

    Eager f32 is always there, as every speed-up is counted from it. In int8 there are those sides only that quantize.
    """
    found = []
    for precision in dict.fromkeys(("f32", *options.precisions)):
        known = quantizing if precision == INT8 else builders
        asked = [BASELINE, *(name for name in known if name in options.peers), SUBJECT]
        found += [(precision, name) for name in asked if name in known and (precision in options.precisions or name == BASELINE)]
    return list(dict.fromkeys(found))


def try_side(subject: Subject, name: str, builder: Builder, precision: str, eager_error: float | None) -> Candidate:
    """Build one side from a copy of the model, and compare its outputs with the reference."""
    row = subject.row(precision, name)
    module = copy.deepcopy(subject.module)
    try:
        import_packages(name)
        with peers_may_fail(name):
            start = time.perf_counter()
            built = builder(module, subject.inputs, precision)
            build_s = time.perf_counter() - start
            outputs = [outputs_of(built, inputs) for inputs, _ in subject.checks]
    except Absent as reason:
        return Candidate(replace(row, why=str(reason)))
    error = max(worst_error(out, expected) for out, (_, expected) in zip(outputs, subject.checks, strict=True))
    allowed = tolerance(name, precision, eager_error)
    row = replace(row, build_s=round(build_s, 3), note=built.note, error=error, tolerance=allowed)
    if name == SUBJECT:
        stop_if_wrong(f"{row.model}, batch {row.batch}, {precision}", error, allowed)
    if not passes(error, allowed):
        return Candidate(replace(row, why=f"wrong: relative error {error:.1e}, allowed {allowed:.1e}"))
    return Candidate(row, built)


def time_in_turns(candidates: Sequence[Candidate], subject: Subject, options: Options, step: Step) -> list[Row]:
    """Time all sides that are right in one interleaved run, every precision in it, so that any two can be compared."""
    calls: dict[str, Call] = {}
    for candidate in candidates:
        if candidate.built is not None:
            calls[candidate.key] = candidate.built.bind(subject.inputs)

    def on_round(done: int, rounds: int) -> None:
        step(f"{subject.model.name}, batch {subject.batch}: timing {len(calls)} sides in turns", 0.5 + 0.4 * done / rounds)

    samples = interleave(calls, options.seconds, options.seed, on_round)
    return [replace(c.row, stats=Stats.of(samples[c.key]) if c.built else None) for c in candidates]


def measure_memory(rows: Sequence[Row], subject: Subject, options: Options, step: Step) -> list[Row]:
    """Add each side's peak memory, from a fresh process each."""
    if not options.memory:
        return list(rows)
    found = []
    for place, row in enumerate(rows):
        step(f"{row.model}, batch {row.batch}: memory of {row.side} {row.precision}", 0.9 + 0.1 * place / len(rows))
        peak = peak_memory_mb(subject.model.name, subject.batch, row.precision, row.side) if row.stats else None
        found.append(replace(row, peak_mb=peak))
    return found


def command(models: Sequence[str], options: Options) -> str:
    """The command line that makes this report again."""
    parts = ["torchsmith bench", *models]
    parts += ["--batch", ",".join(map(str, options.batches)), "--precision", ",".join(options.precisions)]
    parts += ["--peers", ",".join(options.peers), "--seconds", f"{options.seconds:g}"]
    return " ".join([*parts, *["--no-memory"] * (not options.memory)])


def _known(what: str, given: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The names as they are. Raises InvalidOption for one that is not known, naming the nearest."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise InvalidOption(f"bench has no {what} {name!r}; {hint}")
    return tuple(dict.fromkeys(given))


def _positive(what: str, given: Sequence[int]) -> tuple[int, ...]:
    if not given or any(number < 1 for number in given):
        raise InvalidOption(f"{what} {','.join(map(str, given))!r} makes no sense; it takes whole numbers from 1 on, such as 1,8")
    return tuple(dict.fromkeys(given))
