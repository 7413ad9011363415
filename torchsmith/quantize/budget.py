"""What accuracy a model may lose, and how the loss is measured over calibration data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.quantize.batches import Batch


@dataclass(frozen=True)
class AccuracyBudget:
    """How much of a metric a compiled model may lose, over the calibration data.

    metric: called as `metric(outputs, batch)` with what the model returns for a batch, and that batch as the calibration data
    gives it, labels included; returns a number. The model's figure is the mean over the batches, weighted by their rows.
    loss: how much worse than the unquantized model's the figure may be, in the metric's unit, 0 or more.
    greater_is_better: True for accuracies, False for errors.

        torchsmith.AccuracyBudget(lambda scores, batch: (scores.argmax(1) == batch[1]).float().mean(), loss=0.005)
    """

    metric: Callable[[Any, Any], Any]
    loss: float
    greater_is_better: bool = True

    def __str__(self) -> str:
        return f"a loss of {self.loss:.3g} in {getattr(self.metric, '__name__', type(self.metric).__name__)}"


@dataclass(frozen=True)
class ErrorBudget:
    """The relative error that the outputs may have: of each output, the root of the sum of squared differences from the
    unquantized model's, over all numbers of all calibration batches, by the root of the sum of its squares; the worst counts.
    """

    loss: float

    def __str__(self) -> str:
        return f"a relative error of {self.loss:.3g}"


Budget: TypeAlias = "AccuracyBudget | ErrorBudget"


def budget_of(given: Any) -> Budget | None:
    """The option's value: a number is a relative error; one in text, as the command line has it, is too. Raises InvalidOption."""
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            raise InvalidOption(
                f"accuracy_budget={given!r}; it takes a relative error such as 0.01, or an AccuracyBudget"
            ) from None
    if isinstance(given, AccuracyBudget):
        if not callable(given.metric):
            raise InvalidOption(
                f"the metric of accuracy_budget is a {type(given.metric).__name__}; give a function of (outputs, batch)"
            )
        if not _is_number(given.loss) or not 0 <= given.loss < math.inf:
            raise InvalidOption(f"accuracy_budget allows a loss of {given.loss!r}; give a finite number that is not negative")
        return given
    if not _is_number(given):
        raise InvalidOption(
            f"accuracy_budget is a {type(given).__name__}; it takes a relative error such as 0.01, or a torchsmith.AccuracyBudget"
        )
    if not 0 < given < math.inf:
        raise InvalidOption(
            f"accuracy_budget={given!r}; a relative error is a finite number above 0, such as 0.01: rounding alone makes some 1e-6"
        )
    return ErrorBudget(float(given))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


@dataclass(frozen=True)
class Sample:
    """One of the user's batches: the calls that it is, and for each the outputs of the unquantized model, flat.

    score: what the metric gives for them; None where there is none. weight: of the batch in means.
    """

    calls: tuple[Batch, ...]
    outputs: tuple[Sequence[Any], ...]
    score: float | None
    weight: float


@dataclass(frozen=True)
class Loss:
    """error: relative, as `ErrorBudget` says. spent: what counts against the budget; the same number where that is an error."""

    error: float
    spent: float


@dataclass
class Tally:
    """Adds up what a version of the model loses. spec: how the flat outputs nest."""

    budget: Budget
    spec: pytree.TreeSpec
    _squares: dict[int, tuple[float, float]] = field(default_factory=dict)
    _waiting: list[Sequence[Any]] = field(default_factory=list)
    _scores: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, sample: Sample, index: int, outputs: Sequence[Any]) -> None:
        """The outputs of one call of a sample; calls come in their order."""
        for number, (given, wanted) in enumerate(zip(outputs, sample.outputs[index], strict=True)):
            if isinstance(wanted, Tensor) and wanted.is_floating_point():
                difference = float((given.to(wanted.device).double() - wanted.double()).square().sum())
                before = self._squares.get(number, (0.0, 0.0))
                self._squares[number] = before[0] + difference, before[1] + float(wanted.double().square().sum())
        if isinstance(self.budget, AccuracyBudget):
            self._waiting.append(outputs)
            if len(self._waiting) == len(sample.calls):
                score = scored(self.budget, self.spec, sample.calls, self._waiting, of="the model at lower precision")
                assert sample.score is not None
                self._scores.append((score, sample.score, sample.weight))
                self._waiting = []

    def loss(self) -> Loss:
        errors = [_ratio(*sums) for sums in self._squares.values()]
        error = max(errors, default=0.0)
        if not isinstance(self.budget, AccuracyBudget):
            return Loss(error, error)
        weights = sum(weight for _, _, weight in self._scores)
        lost = sum((before - after) * weight for after, before, weight in self._scores) / weights
        lost = lost if self.budget.greater_is_better else -lost
        return Loss(error, math.inf if math.isnan(lost) else lost)


def _ratio(difference: float, whole: float) -> float:
    if not math.isfinite(difference):
        return math.inf
    return math.sqrt(difference / whole) if whole else (math.inf if difference else 0.0)


def samples_of(
    batches: Iterable[Batch], run: Callable[[Batch], Sequence[Any]], budget: Budget, spec: pytree.TreeSpec
) -> Iterator[Sample]:
    """The user's batches with what the unquantized model makes of them. run: one call of it, giving flat outputs.

    Raises InvalidInput where that is not finite, and InvalidOption for a metric that gives no number.
    """
    calls: list[Batch] = []
    for batch in batches:
        if calls and calls[0].number != batch.number:
            yield _sample(calls, run, budget, spec)
            calls = []
        calls.append(batch)
    if calls:
        yield _sample(calls, run, budget, spec)


def _sample(calls: list[Batch], run: Callable[[Batch], Sequence[Any]], budget: Budget, spec: pytree.TreeSpec) -> Sample:
    outputs = [run(call) for call in calls]
    floats = [v for given in outputs for v in given if isinstance(v, Tensor) and v.is_floating_point()]
    if any(not bool(torch.isfinite(v).all()) for v in floats):
        raise InvalidInput(
            f"calibration batch {calls[0].number} makes outputs of the unquantized model infinite or NaN, "
            "so that no accuracy can be measured; leave such inputs out"
        )
    if not floats and isinstance(budget, ErrorBudget):
        raise InvalidInput("the model gives no floating numbers, which have no relative error; give a torchsmith.AccuracyBudget")
    score = None
    if isinstance(budget, AccuracyBudget):
        score = scored(budget, spec, calls, outputs, of="the unquantized model")
        if not math.isfinite(score):
            raise InvalidOption(
                f"the metric of accuracy_budget gave {score} for calibration batch {calls[0].number} and the unquantized model; "
                "it must give a finite number"
            )
    return Sample(tuple(calls), tuple(outputs), score, float(sum(_rows(call) for call in calls)))


def _rows(call: Batch) -> int:
    if call.rows is not None:
        return call.rows
    return next((int(v.shape[0]) for v in call.inputs if isinstance(v, Tensor) and v.dim()), 1)


def scored(
    budget: AccuracyBudget, spec: pytree.TreeSpec, calls: Sequence[Batch], outputs: Sequence[Sequence[Any]], of: str
) -> float:
    """The metric of a batch. outputs: of its calls, flat. of: whose they are. Raises InvalidOption where it gives no number."""
    joined = (_joined(calls, list(parts)) for parts in zip(*outputs, strict=True))
    whole = [value.clone() if isinstance(value, Tensor) else value for value in joined]  # metrics may write to what they get
    try:
        with torch.no_grad():
            value = budget.metric(pytree.tree_unflatten(whole, spec), calls[0].item)
    except Exception as error:  # the user's own code may raise anything; it becomes the cause of what is raised
        raise InvalidOption(
            f"the metric of accuracy_budget failed for calibration batch {calls[0].number} and {of}: "
            f"{type(error).__name__}: {error}"
        ) from error
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, numbers.Real):
        raise InvalidOption(
            f"the metric of accuracy_budget gave {_described(value)} for calibration batch {calls[0].number} and {of}; "
            "it must give a number, such as the share of right answers"
        )
    return float(value)


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _joined(calls: Sequence[Batch], parts: list[Any]) -> Any:
    """An output of a batch that was cut in calls of the program's own batch size. Raises InvalidInput."""
    if all(call.rows is None for call in calls):
        return parts[0]
    kept = []
    for call, part in zip(calls, parts, strict=True):
        assert call.rows is not None
        if not isinstance(part, Tensor) or not part.dim() or part.shape[0] != call.size:
            raise InvalidInput(
                f"calibration batch {call.number} was cut to the model's batch size of {call.size}, and an output has no such "
                f"first dimension to join the parts by; give batches of {call.size} rows, or compile with a dynamic batch size"
            )
        kept.append(part[: call.rows])
    return torch.cat(kept)
