"""Where in the arena each value lives: lifetimes into offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 256  # bytes; what kernels are compiled to expect of a root's address


@dataclass(frozen=True)
class Lifetime:
    """A root's storage, from the first step that touches it to the last, both included. bytes: its size."""

    name: str
    first: int
    last: int
    bytes: int


def arrange(lifetimes: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """Offsets in one arena, and its size in bytes. No two values that live at the same time overlap.

    The largest are placed first, each at the lowest offset that is free for as long as it lives.
    """
    placed: list[tuple[int, Lifetime]] = []
    offsets: dict[str, int] = {}
    for life in sorted(lifetimes, key=lambda life: (-life.bytes, life.first, life.name)):
        offset = 0
        for start, other in sorted(
            ((o, p) for o, p in placed if p.first <= life.last and life.first <= p.last), key=lambda t: t[0]
        ):
            if offset + life.bytes <= start:
                break
            offset = max(offset, _up(start + other.bytes))
        placed.append((offset, life))
        offsets[life.name] = offset
    return offsets, max((offset + life.bytes for offset, life in placed), default=0)


def peak(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that live at one step: no arena is smaller."""
    changes: Mapping[int, int] = {}
    totals: dict[int, int] = dict(changes)
    for life in lifetimes:
        totals[life.first] = totals.get(life.first, 0) + _up(life.bytes)
        totals[life.last + 1] = totals.get(life.last + 1, 0) - _up(life.bytes)
    most = now = 0
    for step in sorted(totals):
        now += totals[step]
        most = max(most, now)
    return most


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
