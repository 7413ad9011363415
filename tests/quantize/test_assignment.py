"""The search for the fastest assignment, on made-up layers, and the cost model that says what is fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection

import pytest
import torch
from torch import fx

from torchsmith.quantize.assignment import Family, Ladder, Step, families, frontier, raised, search
from torchsmith.quantize.budget import Loss
from torchsmith.quantize.cost import Work, rates, time_of
from torchsmith.quantize.sensitivity import Choice, Option
from torchsmith.target import Target

F32, F16, BF16, INT8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
GRAPH = fx.Graph()


def option(precision: torch.dtype, time: float, error: float) -> Option:
    return Option(precision, time, Loss(error, error))


def ladder(*layers: tuple[float, float], time: float = 1.0) -> Ladder:
    """Layers in int8 or float32. layers: each one's time in float32 beyond that in int8, and its error in int8."""
    choices = [
        Choice(GRAPH.placeholder(f"x{number}"), f"layer {number}", (option(F32, time + more, 0.0), option(INT8, time, error)))
        for number, (more, error) in enumerate(layers)
    ]
    return Ladder(Family(True, (F32,)), choices)


def added(ladder: Ladder) -> Callable[[Collection[Step]], float]:
    """Squared errors that add up."""

    def loss(taken: Collection[Step]) -> float:
        levels = ladder.levels(taken)
        return math.sqrt(sum(ladder.options[node][level].alone.error ** 2 for node, level in levels.items()))

    return loss


def test_nothing_is_raised_where_all_int8_holds() -> None:
    layers = ladder((1.0, 0.1), (1.0, 0.2))
    assert search(layers, added(layers), 0.3) == ()


def test_what_loses_most_for_its_time_is_raised_first() -> None:
    layers = ladder((1.0, 0.1), (1.0, 0.3), (10.0, 0.3), (1.0, 0.01))
    nodes = list(layers.options)
    assert [nodes.index(step.node) for step in layers.steps] == [1, 0, 2, 3]
    taken = search(layers, added(layers), 0.32)
    assert taken is not None and [step.node for step in taken] == [nodes[1]]
    assert set(layers.precisions(taken).values()) == {INT8, F32}
    assert layers.time(taken) == 5.0


def test_where_not_even_the_most_accurate_holds_there_is_none() -> None:
    layers = ladder((1.0, 0.1))
    assert search(layers, lambda taken: 1.0, 0.5) is None and raised(layers, (), lambda taken: 1.0, 0.5) is None


def test_steps_that_turn_out_not_to_be_needed_are_taken_back() -> None:
    layers = ladder((1.0, 0.30), (8.0, 0.50), (1.0, 0.10))
    nodes = list(layers.options)

    def loss(taken: Collection[Step]) -> float:  # alone the second layer seemed to lose much; the others' loss is not its own
        return 0.0 if {step.node for step in taken} >= {nodes[0], nodes[2]} else 1.0

    taken = search(layers, loss, 0.5)
    assert taken is not None and {step.node for step in taken} == {nodes[0], nodes[2]}


@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_near_the_best_assignment(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    times, errors = torch.rand(2, 8, generator=generator).tolist()
    layers = ladder(*zip(times, errors, strict=True))
    loss, allowed = added(layers), 0.8
    taken = search(layers, loss, allowed)
    assert taken is not None and loss(taken) <= allowed
    subsets = (s for size in range(9) for s in itertools.combinations(layers.steps, size))
    best = min(layers.time(subset) for subset in subsets if loss(subset) <= allowed)
    assert layers.time(taken) <= best * 1.05


def test_more_steps_are_taken_in_their_order_until_it_holds() -> None:
    layers = ladder((1.0, 0.4), (1.0, 0.3), (1.0, 0.2), (1.0, 0.1))
    first = layers.steps[:1]
    more = raised(layers, first, added(layers), 0.15)
    assert more is not None and more[:1] == first and more == layers.steps[:3] and added(layers)(more) <= 0.15
    assert raised(layers, (), added(layers), 0.4) == layers.steps[:1]


def test_options_that_are_slower_and_no_more_accurate_are_left_out() -> None:
    options = [option(F32, 4, 0.0), option(BF16, 2, 0.02), option(F16, 2, 0.01), option(INT8, 3, 0.1)]
    assert [o.precision for o in frontier(options)] == [F16, F32]
    wins_little = [option(F32, 4, 0.0), option(BF16, 3.9, 0.09), option(INT8, 1, 0.1)]
    assert [o.precision for o in frontier(wins_little)] == [INT8, F32]
    overflows = [option(F32, 4, 0.0), option(F16, 2, math.inf), option(BF16, 2, 0.1), option(INT8, 1, 0.2)]
    assert [o.precision for o in frontier(overflows)] == [INT8, BF16, F32]


def test_families_are_what_engines_mix() -> None:
    assert families(True, (BF16, F32), True) == (Family(True, (BF16, F32)),)
    assert families(True, (BF16, F32), False) == (Family(True, (BF16,)), Family(True, (F32,)), Family(False, (BF16, F32)))
    assert families(False, (BF16, F32), False) == (Family(False, (BF16, F32)),)
    assert families(True, (F32,), False) == (Family(True, (F32,)),)


def rows(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("values", "given", "axis", "operations"),
    [
        pytest.param([(2, 16, 8, 8), (32, 16, 3, 3)], (2, 32, 8, 8), 0, 2 * 2 * 32 * 64 * 16 * 9, id="convolution"),
        pytest.param([(2, 16, 8, 8), (16, 1, 3, 3)], (2, 16, 8, 8), 0, 2 * 2 * 16 * 64 * 9, id="depthwise"),
        pytest.param([(5, 16), (16, 24)], (5, 24), 1, 2 * 5 * 24 * 16, id="product with a weight"),
        pytest.param([(4, 7, 16), (4, 16, 9)], (4, 7, 9), None, 2 * 4 * 7 * 9 * 16, id="product of activations"),
        pytest.param([(2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)], (2, 4, 7, 8), None, 4 * 2 * 4 * 7 * 9 * 8, id="attention"),
    ],
)
def test_work_is_counted(values: list[tuple[int, ...]], given: tuple[int, ...], axis: int | None, operations: int) -> None:
    work = Work.of([rows(*shape) for shape in values], rows(*given), axis)
    assert work.operations == operations
    assert work.numbers == sum(map(math.prod, values)) + math.prod(given)


@pytest.mark.parametrize(
    "target",
    [
        Target("cuda", "sm_80"),
        Target("cuda", "sm_90"),
        Target("cuda", "sm_100"),
        Target("cpu", "x86_64", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")),
        Target("cpu", "x86_64", ("avx2",)),
        Target("cpu", "aarch64"),
    ],
    ids=str,
)
def test_smaller_numbers_are_never_slower(target: Target) -> None:
    for work in (Work(1e9, 1e3), Work(1e3, 1e6)):
        times = [time_of(work, dtype, target) for dtype in (INT8, F16, F32)]
        assert times == sorted(times) and times[0] < times[2]
    assert rates(target)[INT8] >= 2 * rates(target)[F32]
