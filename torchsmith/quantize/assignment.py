"""Which layer gets which precision: the fastest assignment whose joint loss stays within a budget.

Each layer's options are steps from the fastest to the most accurate. The steps of all layers stand in one row, those that win
back most error for the time that they cost first, and the search looks for the shortest beginning of that row with which the
whole model, run with all its rounding at once, keeps the budget; then it takes back what turns out not to be needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from torchsmith.quantize.formats import FORMATS
from torchsmith.quantize.sensitivity import Choice, Option

# How many steps are tried to be taken back, those that cost most time first, and the least share of all time that one is worth it.
_TAKEN_BACK, _WORTHWHILE = 8, 0.005


@dataclass(frozen=True)
class Family:
    """Precisions that may stand in one engine. eight_bits: int8 and fp8, as far as layers have them. floats: fastest first; what is
    no layer computes in the first.
    """

    eight_bits: bool
    floats: tuple[torch.dtype, ...]

    def admits(self, precision: torch.dtype) -> bool:
        return self.eight_bits if precision in FORMATS else precision in self.floats


def families(eight_bits: bool, floats: Sequence[torch.dtype], mixes: bool) -> tuple[Family, ...]:
    """mixes: whether several floats may stand beside eight bits in one engine."""
    if mixes or not eight_bits or len(floats) == 1:
        return (Family(eight_bits, tuple(floats)),)
    return (*(Family(True, (dtype,)) for dtype in floats), Family(False, tuple(floats)))


@dataclass(frozen=True)
class Step:
    """A layer goes from one of its options to the next more accurate one."""

    node: fx.Node
    level: int
    time: float
    error: float  # squared, that it takes off

    @property
    def worth(self) -> float:
        return self.error / self.time if self.time > 0 else math.inf


# For each layer that has a choice, the number of the option taken.
Levels = Mapping[fx.Node, int]


class Ladder:
    """A family's options of all layers, and the row of steps between them."""

    def __init__(self, family: Family, choices: Sequence[Choice]) -> None:
        self.family = family
        self.options = {choice.node: frontier([o for o in choice.options if family.admits(o.precision)]) for choice in choices}
        steps = [
            Step(node, level + 1, slow.time - fast.time, _square(fast) - _square(slow))
            for node, options in self.options.items()
            for level, (fast, slow) in enumerate(itertools.pairwise(options))
        ]
        self.steps = tuple(sorted(steps, key=lambda step: -step.worth))

    def levels(self, taken: Collection[Step]) -> dict[fx.Node, int]:
        found = dict.fromkeys(self.options, 0)
        for step in taken:
            found[step.node] = max(found[step.node], step.level)
        return found

    def precisions(self, taken: Collection[Step]) -> dict[fx.Node, torch.dtype]:
        return {node: self.options[node][level].precision for node, level in self.levels(taken).items()}

    def time(self, taken: Collection[Step]) -> float:
        return sum(self.options[node][level].time for node, level in self.levels(taken).items())


def frontier(options: Sequence[Option]) -> tuple[Option, ...]:
    """The options, fastest first, that are worth their time: each is more accurate than what is faster, and each step wins back
    less for its time than the one before.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.time, o.alone.error)):
        if found and _square(option) >= _square(found[-1]):
            continue
        while len(found) > 1 and _worth(found[-2], found[-1]) <= _worth(found[-1], option):
            found.pop()
        found.append(option)
    return tuple(found)


def _worth(fast: Option, slow: Option) -> float:
    return (_square(fast) - _square(slow)) / max(slow.time - fast.time, math.ulp(0.0))


def _square(option: Option) -> float:
    """Squared errors of layers nearly add up. Where a layer overflows, it is a great number, so that differences stay numbers."""
    return min(option.alone.error**2, 1e30)


def search(ladder: Ladder, loss: Callable[[Collection[Step]], float], allowed: float) -> tuple[Step, ...] | None:
    """The steps to take, as few and as cheap as found; None where even all of them lose more than is allowed.

    loss: of the whole model with some steps taken.
    """
    row = ladder.steps
    if loss(()) <= allowed:
        return ()
    if not loss(row) <= allowed:
        return None
    fails, holds = 0, len(row)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if loss(row[:middle]) <= allowed:
            holds = middle
        else:
            fails = middle
    taken = list(row[:holds])
    # the last step was just found to be needed
    dear = [step for step in taken[:-1] if step.time > _WORTHWHILE * ladder.time(taken)]
    for step in sorted(dear, key=lambda step: -step.time)[:_TAKEN_BACK]:
        if any(other.node is step.node and other.level > step.level for other in taken):
            continue
        fewer = [other for other in taken if other is not step]
        if loss(fewer) <= allowed:
            taken = fewer
    return tuple(taken)


def raised(
    ladder: Ladder, taken: Sequence[Step], loss: Callable[[Collection[Step]], float], allowed: float
) -> tuple[Step, ...] | None:
    """More steps, in the row's order and at least one, until the loss is allowed; None where all are not enough."""
    left = [step for step in ladder.steps if step not in taken]
    count = 1
    while left:
        count = min(count, len(left))
        more = (*taken, *left[:count])
        if loss(more) <= allowed:
            return more
        if count == len(left):
            return None
        count *= 2
    return None
