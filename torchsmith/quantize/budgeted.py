"""The precisions of all layers, chosen for speed within an accuracy budget, and checked on what was built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.debug.progress import Progress, progress_of
from torchsmith.errors import BudgetExceeded
from torchsmith.lower.editing import copied, settled
from torchsmith.quantize.abilities import ALL, Int8Abilities
from torchsmith.quantize.assignment import Ladder, Step, families, raised, search
from torchsmith.quantize.batches import Batch, batches_of
from torchsmith.quantize.budget import AccuracyBudget, Budget, Loss, Sample, Tally, samples_of
from torchsmith.quantize.calibration import Calibration
from torchsmith.quantize.formats import FORMATS
from torchsmith.quantize.insert import correct_biases, insert, with_ranges
from torchsmith.quantize.placement import Placement, among, apart, place, worthwhile
from torchsmith.quantize.sensitivity import sensitivities
from torchsmith.quantize.simulate import Rounding, Simulation, eight_bit_rounding, joint_rounding, kinds_of
from torchsmith.target import Target

# Calls of the program: that layers are told apart by, and that assignments are tried on before all data have the last word.
_ALONE_CALLS, _TRIED_CALLS = 2, 8
# Engines are built this often at most, before the most accurate one; and again only where the layers would take this share of the
# time.
_BUILDS, _FASTER = 5, 0.98
_GREAT = 1e6  # for losses that are infinite

Run = Callable[[Batch], Sequence[Any]]


@dataclass(frozen=True)
class Model:
    """What is quantized. calibration: None where neither int8 nor fp8 is enabled. skip_layers: as the option has it.

    int8, formats: as in `place`.
    """

    program: ExportedProgram
    placement: Placement
    calibration: Calibration | None
    skip_layers: frozenset[str]
    target: Target
    int8: Int8Abilities = ALL
    formats: tuple[torch.dtype, ...] = (torch.int8,)


@dataclass(frozen=True)
class Allowed:
    """eight_bits: whether int8 or fp8 is enabled and computed in. floats: those of the enabled ones, fastest first.

    mixes: whether an engine may have several floats beside eight bits.
    """

    budget: Budget
    eight_bits: bool
    floats: tuple[torch.dtype, ...]
    mixes: bool


@dataclass(frozen=True)
class Assignment:
    """What every layer computes in. simulated: what that loses, over all calibration data."""

    ladder: Ladder
    taken: tuple[Step, ...]
    simulated: Loss

    @property
    def rest(self) -> torch.dtype:
        """The float of what is no layer, and of layers that eight bits would not serve."""
        return self.ladder.family.floats[0]

    @property
    def time(self) -> float:
        """By the cost model."""
        return self.ladder.time(self.taken)


class Budgeted:
    """The search over one model's assignments, which learns from what engines were measured to lose."""

    def __init__(self, model: Model, data: Iterable[Any], allowed: Allowed) -> None:
        """data: can be iterated over again. Raises BudgetExceeded where nothing keeps the budget; InvalidInput and InvalidOption
        for data and metrics that are no use.
        """
        assert model.program.call_spec.out_spec is not None
        self.model, self.data, self.allowed = model, data, allowed
        self.spec = model.program.call_spec.out_spec
        self.simulation, self.kinds = Simulation(model.program), kinds_of(model.program)
        samples = self._samples()
        self._tried = list(_until(samples, _TRIED_CALLS))
        self._is_all = next(samples, None) is None
        self._losses: dict[tuple[Ladder, frozenset[Step], bool], Loss] = {}
        self.batches = len(self._tried)  # that the last look at all data saw
        self.choices = sensitivities(
            model.program, model.placement, model.calibration, self.kinds, allowed.floats,
            list(_until(iter(self._tried), _ALONE_CALLS)), allowed.budget, model.target, model.skip_layers,
        )  # fmt: skip
        self.ladders = [Ladder(family, self.choices) for family in families(allowed.eight_bits, allowed.floats, allowed.mixes)]
        self._measured: dict[tuple[Ladder, frozenset[Step]], Loss] = {}
        self._bias = {ladder: (1.0, 0.0) for ladder in self.ladders}  # of engines: a factor, and what is added
        self.best: Assignment | None = None
        found = self._fastest()
        if found is None:
            top = self._top()
            raise BudgetExceeded(self._sentence("a simulation", top.simulated))
        self.assignment = found

    def learn(self, measured: Loss) -> bool:
        """Note what the engines of the present assignment lose. Gives whether that keeps the budget."""
        now = self.assignment
        self._measured[now.ladder, frozenset(now.taken)] = measured
        if isinstance(self.allowed.budget, AccuracyBudget):
            self._bias[now.ladder] = 1.0, min(measured.spent, _GREAT) - min(now.simulated.spent, _GREAT)
        elif 0 < now.simulated.spent < math.inf:
            self._bias[now.ladder] = min(measured.spent / now.simulated.spent, _GREAT), 0.0
        holds = measured.spent <= self.allowed.budget.loss
        if holds:
            self.best = now
        return holds

    def goes_on(self) -> bool:
        """Take another assignment, going by how the engines differed from the simulation: a faster one than the best so far, or
        a more accurate one where none kept the budget. False where the best so far is to be kept. Raises BudgetExceeded.
        """
        found = self._fastest() if len(self._measured) < _BUILDS else None
        if self.best is not None:
            if found is None or found.time > _FASTER * self.best.time:
                self.assignment = self.best
                return False
        elif found is None:
            found = self._top()
            if (loss := self._measured.get((found.ladder, frozenset(found.taken)))) is not None:
                raise BudgetExceeded(self._sentence("a run of the engines", loss))
        self.assignment = found
        return True

    def loss(self, run: Run) -> Loss:
        """What the calls of another form of the model lose, over all calibration data."""
        tally, count = Tally(self.allowed.budget, self.spec), 0
        with progress_of("measuring the loss") as progress, torch.no_grad():
            for sample in self._tried if self._is_all else self._samples():
                count += 1
                progress.expect(1)
                for index, call in enumerate(sample.calls):
                    tally.add(sample, index, run(call))
                progress.advance()
        self.batches = count
        return tally.loss()

    def precisions(self) -> dict[fx.Node, torch.dtype]:
        """Of every layer, by its node in the model's program."""
        return self._precisions(self.assignment.ladder, self.assignment.taken)

    def record(self, measured: Loss | None) -> dict[str, Any]:
        """The choice as plain data. measured: on the engines; None where they cannot run here.

        layers: by name the precision, the share of the time with every layer in the most accurate float that the cost model says
        is gained, and for each smaller precision what it loses alone: error (None where it overflows) and, in the budget's
        measure, spent.
        """
        now, precisions = self.assignment, self.precisions()
        slowest = {choice.node: max(option.time for option in choice.options) for choice in self.choices}
        times = {c.node: next(o.time for o in c.options if o.precision == precisions[c.node]) for c in self.choices}
        whole = sum(slowest.values()) or 1.0
        found = now.simulated if measured is None else measured
        return {
            "budget": str(self.allowed.budget),
            "allowed": self.allowed.budget.loss,
            "measured_on": "a simulation" if measured is None else "the engines",
            "batches": self.batches,
            **_plain(found),
            "simulated": _plain(now.simulated),
            "gains_by": "a cost model",
            "time": sum(times.values()) / whole,
            "layers": [
                {
                    "name": choice.name,
                    "precision": str(precisions[choice.node]).removeprefix("torch."),
                    "gain": (slowest[choice.node] - times[choice.node]) / whole,
                    "alone": {
                        str(o.precision).removeprefix("torch."): _plain(o.alone) for o in choice.options if o.alone.error > 0
                    },
                }
                for choice in self.choices
            ],
        }

    def program(self) -> ExportedProgram:
        """The model with fake-quantize ops, and what computes in another float than the rest marked so."""
        program = copied(self.model.program)
        precisions = {node.name: dtype for node, dtype in self.precisions().items()}
        whole = place(program, self.model.skip_layers, int8=self.model.int8, formats=self.model.formats)
        for node in program.graph.nodes:
            dtype = precisions.get(node.name, self.assignment.rest)
            if dtype not in FORMATS and dtype != self.assignment.rest:
                node.meta["precision"] = dtype
        if any(dtype in FORMATS for dtype in precisions.values()):
            assert self.model.calibration is not None
            layers = [layer for layer in whole.layers if precisions.get(layer.node.name) == layer.dtype]
            attentions = [node for node in whole.attentions if precisions.get(node.name) in FORMATS]
            placement = apart(among(program, layers, self.model.skip_layers, attentions, whole.int8), self.model.calibration.ranges)
            calibration = with_ranges(placement, self.model.calibration)
            correct_biases(program, placement, calibration)
            insert(program, placement, calibration)
        program.graph.lint()
        program.graph_module.recompile()
        return settled(program)

    def _samples(self) -> Iterator[Sample]:
        device = next((t.device for t in parameters_of(self.model.program).values()), None)
        batches = batches_of(self.data, self.model.program, device)
        return samples_of(batches, self.simulation.outputs, self.allowed.budget, self.spec)

    def _fastest(self) -> Assignment | None:
        """The fastest assignment that is expected to keep the budget on engines."""
        limit, found = self.allowed.budget.loss, list[tuple[float, Ladder, tuple[Step, ...]]]()
        with progress_of("choosing precisions") as progress:
            for ladder in sorted(self.ladders, key=lambda ladder: ladder.time(())):
                if any(time <= ladder.time(()) for time, _, _ in found):
                    break  # not even its fastest assignment is faster
                taken = search(ladder, self._expecting(ladder, False, progress), limit)
                if taken is not None:
                    found.append((ladder.time(taken), ladder, taken))
            for _, ladder, taken in sorted(found, key=lambda entry: entry[0]):
                expected = self._expecting(ladder, True, progress)
                more: tuple[Step, ...] | None = taken
                if expected(taken) > limit:
                    more = raised(ladder, taken, expected, limit)
                if more is not None:
                    return Assignment(ladder, more, self._loss(ladder, more, True, progress))
        return None

    def _top(self) -> Assignment:
        """The most accurate one."""
        ladder = self.ladders[-1]
        with progress_of("choosing precisions") as progress:
            return Assignment(ladder, ladder.steps, self._loss(ladder, ladder.steps, True, progress))

    def _expecting(self, ladder: Ladder, everything: bool, progress: Progress) -> Callable[[Collection[Step]], float]:
        """What engines are expected to lose with some steps taken: as measured, or as simulated and corrected."""
        factor, added = self._bias[ladder]

        def expected(taken: Collection[Step]) -> float:
            if (measured := self._measured.get((ladder, frozenset(taken)))) is not None:
                return measured.spent
            return factor * self._loss(ladder, taken, everything, progress).spent + added

        return expected

    def _loss(self, ladder: Ladder, taken: Collection[Step], everything: bool, progress: Progress) -> Loss:
        """Simulated. everything: over all data; else over those that assignments are tried on."""
        everything = everything and not self._is_all
        key = ladder, frozenset(taken), everything
        if key not in self._losses:
            rounding, tally = self._rounding(ladder, taken), Tally(self.allowed.budget, self.spec)
            progress.expect(1)
            for sample in self._samples() if everything else self._tried:
                for index, call in enumerate(sample.calls):
                    tally.add(sample, index, self.simulation.outputs(call, rounding))
            progress.advance()
            self._losses[key] = tally.loss()
        return self._losses[key]

    def _rounding(self, ladder: Ladder, taken: Collection[Step]) -> Rounding:
        model, precisions = self.model, self._precisions(ladder, taken)
        eight = Rounding()
        if any(dtype in FORMATS for dtype in precisions.values()):
            assert model.calibration is not None
            layers = [layer for layer in model.placement.layers if precisions.get(layer.node) == layer.dtype]
            attentions = [node for node in model.placement.attentions if precisions.get(node) in FORMATS]
            placement = apart(
                among(model.program, layers, model.skip_layers, attentions, model.placement.int8), model.calibration.ranges
            )
            eight = eight_bit_rounding(model.program, placement, with_ranges(placement, model.calibration))
        floats = {node: dtype for node, dtype in precisions.items() if dtype not in FORMATS}
        return joint_rounding(model.program, eight, floats, ladder.family.floats[0], self.kinds)

    def _precisions(self, ladder: Ladder, taken: Collection[Step]) -> dict[fx.Node, torch.dtype]:
        """As chosen, except for depthwise convolutions in int8 behind a float layer, which gain nothing by it."""
        chosen, model = ladder.precisions(taken), self.model
        layers = [layer for layer in model.placement.layers if chosen.get(layer.node) == torch.int8]
        kept = {layer.node for layer in worthwhile(model.program, layers)}
        rest = ladder.family.floats[0]
        return {node: rest if dtype == torch.int8 and node not in kept else dtype for node, dtype in chosen.items()}

    def _sentence(self, what: str, found: Loss) -> str:
        top = self.ladders[-1].precisions(self.ladders[-1].steps)
        names = " and ".join(sorted({str(dtype) for dtype in top.values()})) or str(self.allowed.floats[-1])
        more = "" if torch.float32 in self.allowed.floats else "add torch.float32 to enabled_precisions, or "
        return (
            f"accuracy_budget allows {self.allowed.budget}, and with every layer in {names}, the most accurate that is enabled, "
            f"{what} shows {found.spent:.3g}; {more}allow more"
        )


def _plain(loss: Loss) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(loss).items()}


def _until(samples: Iterator[Sample], calls: int) -> Iterator[Sample]:
    """Samples until they have so many calls."""
    for sample in samples:
        yield sample
        calls -= len(sample.calls)
        if calls <= 0:
            return
