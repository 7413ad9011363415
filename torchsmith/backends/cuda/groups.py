"""Groups of convolutions, as tensor cores take them."""

from __future__ import annotations

LEAST_CHANNELS = 16  # a group; tensor cores multiply 16 at a time, and with fewer would multiply zeros


def merged(groups: int, channels: int, filters: int) -> tuple[int, int, int]:
    """Groups, and each one's channels and filters; small ones are taken together, zeros between them, until tensor cores fit."""
    while groups % 2 == 0 and min(channels, filters) < LEAST_CHANNELS:
        groups, channels, filters = groups // 2, channels * 2, filters * 2
    return groups, channels, filters
