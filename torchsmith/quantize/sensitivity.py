"""What each layer alone costs in accuracy, and gains in time, in each precision that it may have.

The unquantized program runs once over a few batches. Where a layer begins, its values branch off: the rest of the program runs
again with that layer rounded, so that a trial costs what comes after its layer, and nothing before it runs twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.debug.progress import progress_of
from torchsmith.quantize.budget import Budget, Loss, Sample, Tally
from torchsmith.quantize.calibration import Calibration
from torchsmith.quantize.cost import Work, time_of
from torchsmith.quantize.insert import with_ranges
from torchsmith.quantize.placement import Placement, among, apart
from torchsmith.quantize.simulate import Kind, Rounding, Simulation, eight_bit_rounding, float_rounding
from torchsmith.quantize.weighted import Layer, name_of, weighted
from torchsmith.target import Target


@dataclass(frozen=True)
class Option:
    """A precision of a layer. time: by the cost model, in the time that a byte takes. alone: the loss with nothing else rounded."""

    precision: torch.dtype
    time: float
    alone: Loss


@dataclass(frozen=True)
class Choice:
    """A layer with what it may compute in, in no order."""

    node: fx.Node
    name: str
    options: tuple[Option, ...]


@dataclass
class Trial:
    """A layer in a precision, alone. first: the number of the node that the trial branches off at."""

    node: fx.Node
    precision: torch.dtype
    rounding: Rounding
    first: int
    tally: Tally = field(repr=False)


def sensitivities(
    program: ExportedProgram, placement: Placement, calibration: Calibration | None, kinds: Mapping[fx.Node, Kind],
    floats: Sequence[torch.dtype], samples: Sequence[Sample], budget: Budget, target: Target, skip_layers: Collection[str] = (),
) -> tuple[Choice, ...]:  # fmt: skip
    """Every layer's options: what the placement quantizes it to, where there is a calibration, and each of the floats.

    samples: what is run; a few are enough to tell layers apart. Smaller floats are tried only where there is a choice of floats.
    """
    assert program.call_spec.out_spec is not None
    spec, simulation = program.call_spec.out_spec, Simulation(program)
    quantized = placement.dtypes()
    trials: list[Trial] = []

    def attempt(node: fx.Node, precision: torch.dtype, rounding: Rounding) -> None:
        first = min((simulation.index[n] for n in rounding.nodes()), default=len(simulation.nodes) - 1)
        trials.append(Trial(node, precision, rounding, first, Tally(budget, spec)))

    for node in (node for node, kind in kinds.items() if kind == "matrix"):
        if node in quantized and calibration is not None:
            attempt(node, quantized[node], _alone(program, node, placement, calibration, skip_layers))
        for dtype in floats if len(floats) > 1 else ():
            if dtype != torch.float32:
                attempt(node, dtype, float_rounding(node, dtype))
    works = _measure(simulation, trials, samples, weighted(program), {n for n, kind in kinds.items() if kind == "matrix"})
    return _choices(trials, works, floats, target)


def _alone(
    program: ExportedProgram, node: fx.Node, placement: Placement, calibration: Calibration, skip_layers: Collection[str]
) -> Rounding:
    layers = [layer for layer in placement.layers if layer.node is node]
    attentions = [attention for attention in placement.attentions if attention is node]
    alone = apart(among(program, layers, skip_layers, attentions, placement.int8), calibration.ranges)
    return eight_bit_rounding(program, alone, with_ranges(alone, calibration))


def _measure(
    simulation: Simulation, trials: Sequence[Trial], samples: Sequence[Sample],
    layers: Mapping[fx.Node, Layer], matrices: Collection[fx.Node],
) -> dict[fx.Node, Work]:  # fmt: skip
    """Run the trials, which keep their tallies. Gives the work of every matrix node in one call."""
    starting: dict[int, list[Trial]] = {}
    for trial in trials:
        starting.setdefault(trial.first, []).append(trial)
    works: dict[fx.Node, Work] = {}
    with progress_of("measuring what each layer costs") as progress, torch.no_grad():
        progress.expect(len(trials) * sum(len(sample.calls) for sample in samples))
        for sample in samples:
            for index, call in enumerate(sample.calls):
                simulation.env, simulation.rounding = simulation.begin(call), Rounding()
                for number, node in enumerate(simulation.nodes[:-1]):
                    for trial in starting.get(number, ()):
                        trial.tally.add(sample, index, simulation.rest(simulation.env, number, trial.rounding))
                        progress.advance()
                    values = {source: simulation.env[source] for source in node.all_input_nodes} if node in matrices else {}
                    given = simulation.step(number)
                    if node in matrices and node not in works:
                        works[node] = _work(values, given, layers.get(node))
                simulation.env = {}
    return works


def _work(values: Mapping[fx.Node, object], given: Tensor, layer: Layer | None) -> Work:
    """values: of the node's inputs. layer: the node, where its weight is constant."""
    if layer is None:
        return Work.of([v for v in values.values() if isinstance(v, Tensor) and v.is_floating_point()], given)
    x, weight = values[layer.x], values[layer.weight]
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    return Work.of([x, weight], given, layer.axis)


def _choices(
    trials: Sequence[Trial], works: Mapping[fx.Node, Work], floats: Sequence[torch.dtype], target: Target
) -> tuple[Choice, ...]:
    found: dict[fx.Node, list[Option]] = {
        node: [Option(dtype, time_of(work, dtype, target), Loss(0.0, 0.0)) for dtype in floats[-1:]] for node, work in works.items()
    }
    for trial in trials:
        time = time_of(works[trial.node], trial.precision, target)
        options = [option for option in found[trial.node] if option.precision != trial.precision]
        found[trial.node] = [*options, Option(trial.precision, time, trial.tally.loss())]
    return tuple(Choice(node, name_of(node), tuple(options)) for node, options in found.items())
