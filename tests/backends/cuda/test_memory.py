"""The arena: values that live at the same time never overlap, and it is about as small as it can be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsmith.backends.cuda.memory import ALIGNMENT, Lifetime, arrange, peak

LIVES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8), st.integers(0, 5000)), max_size=24).map(
    lambda rows: [Lifetime(f"v{i}", first, first + more, size) for i, (first, more, size) in enumerate(rows)]
)


def check(lives: list[Lifetime]) -> int:
    """The arena's size, after a look at every pair."""
    offsets, size = arrange(lives)
    assert offsets.keys() == {life.name for life in lives}
    for life in lives:
        assert offsets[life.name] % ALIGNMENT == 0 and offsets[life.name] >= 0 and offsets[life.name] + life.bytes <= size
    for i, a in enumerate(lives):
        for b in lives[:i]:
            together = a.first <= b.last and b.first <= a.last
            start, end = max(offsets[a.name], offsets[b.name]), min(offsets[a.name] + a.bytes, offsets[b.name] + b.bytes)
            assert not (together and start < end), (a, b, offsets)
    return size


@settings(max_examples=300, deadline=None)
@given(LIVES)
def test_what_lives_together_never_overlaps(lives: list[Lifetime]) -> None:
    size = check(lives)
    assert size + ALIGNMENT > peak(lives) or size == 0 or size >= peak(lives) - ALIGNMENT
    assert size <= sum(-(-life.bytes // ALIGNMENT) * ALIGNMENT for life in lives)


@settings(max_examples=100, deadline=None)
@given(LIVES, st.randoms())
def test_the_order_does_not_matter(lives: list[Lifetime], shuffle: random.Random) -> None:
    wanted = arrange(lives)
    again = list(lives)
    shuffle.shuffle(again)
    assert arrange(again) == wanted


def test_no_values() -> None:
    assert arrange([]) == ({}, 0) and peak([]) == 0


def test_a_chain_takes_turns() -> None:
    lives = [Lifetime(f"v{i}", i, i + 1, 1000) for i in range(50)]
    assert check(lives) == 1024 + 1000 and peak(lives) == 2048


@pytest.mark.parametrize("seed", range(20))
def test_a_network_is_near_the_peak(seed: int) -> None:
    """Chains with residuals and small vectors beside them, as networks have: at most a fifth above what must live at once."""
    draw = random.Random(seed)
    lives, size = [], 1 << 22
    for step in range(60):
        if step % 15 == 14:
            size //= 2
        lives.append(Lifetime(f"x{step}", step, step + 1, size * draw.choice((1, 1, 4))))
        if step % 4 == 0:
            lives.append(Lifetime(f"r{step}", step, step + 4, size))
        lives.append(Lifetime(f"s{step}", step, step + 1, draw.randrange(64, 4096)))
    assert check(lives) <= 1.2 * peak(lives)


def test_an_empty_value_takes_no_room() -> None:
    assert check([Lifetime("a", 0, 3, 0), Lifetime("b", 0, 3, 100)]) == 100
