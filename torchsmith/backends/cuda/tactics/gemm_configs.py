"""Which tiles a matrix product is tried with, best guess first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

# What the guesses assume, of an H200: multiprocessors, and what they do in a cycle. Fitted to what tuning measured there.
PROCESSORS, SHARED_BYTES, REGISTERS = 132, 230_000, 65536
L2_BYTES, L2_BYTES_EACH, DRAM_BYTES, WRITTEN_EACH = 3800, 50, 3100, 16
LATENCY, START = 650, 1300  # cycles from asking memory to having it; of a kernel besides its loop
# Cycles for an element of A that is multiplied by its gate: of a thread, of a multiprocessor; from asking for a gate to having it.
GATING, GATING_EACH, EXPOSED = 0.7, 0.085, 370
CHAIN = 34  # from a product of 16 elements of K to the next one of the same sum
LAUNCH = 1600  # cycles that one more dependent kernel costs
# What every architecture's blocks may have.
SHARED_EVERYWHERE = 98304


@dataclass(frozen=True)
class GemmConfig:
    """split_k: over how many blocks K is divided, whose sums a second kernel adds. ahead: bring B into L2 before waiting for A.

    programs: 0 for a block a tile, else how many blocks go through the tiles. group_m: rows of tiles that run together.
    chains: how many sums a block makes of each element, of block_k in turn, so that they need not wait for each other.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    ahead: bool = False
    programs: int = 0
    group_m: int = 8
    chains: int = 1

    @property
    def shared_bytes_of_one(self) -> int:
        """Shared memory for the tiles, were elements one byte."""
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * self.chains


@functools.lru_cache(4096)
def gemm_configs(m: int, n: int, k: int, batch: int, item_bytes: int, constant: bool, gated: bool) -> tuple[GemmConfig, ...]:
    """For (m, k) by (n, k), `batch` times, about a dozen. constant: B is known at build time. gated: A goes through registers."""

    def cost(c: GemmConfig) -> tuple[float, int, int]:
        return cycles(c, m, n, k, batch, item_bytes, gated), c.programs, c.num_warps

    ranked = sorted([*candidates(m, n, k, item_bytes), *(chains_of(m, n, k) if item_bytes == 2 else ())], key=cost)
    kept = ranked[:1]
    if not fits_everywhere(kept[0], item_bytes):  # a build without a timing takes the second where that fails
        kept += [c for c in ranked if fits_everywhere(c, item_bytes)][:1]
    for config in ranked:
        alike = [c for c in kept if (c.block_m, c.block_n, c.split_k > 1) == (config.block_m, config.block_n, config.split_k > 1)]
        if len(kept) == 10:
            break
        if any(replace(c, num_stages=config.num_stages) == config for c in alike):
            continue
        splits, sums = sum(c.split_k > 1 for c in kept), sum(c.chains > 1 for c in kept)
        if len(alike) < 2 and (config.split_k == 1 or splits < 4) and (config.chains == 1 or sums < (4 if k > 256 else 2)):
            kept.append(config)
    long = [c for c in kept[:3] if c.split_k == 1 and -(-m // c.block_m) * -(-n // c.block_n) > 1.5 * PROCESSORS and batch == 1]
    through = [replace(c, chains=1, programs=PROCESSORS * min(4, resident(c, item_bytes, gated))) for c in long]
    best, *others = sorted([*kept[:3], *through[:2]], key=cost)
    kept[:3] = [best, *sorted(others, key=lambda c: not fits_everywhere(c, item_bytes))]
    if constant and m <= 1024:
        kept = [replace(c, ahead=True) for c in kept[:2]] + [kept[0]] + [replace(c, ahead=True) for c in kept[2:]]
    return tuple(kept[:12])


@functools.lru_cache(4096)
def split_configs(m: int, n: int, k: int, item_bytes: int, constant: bool) -> tuple[GemmConfig, ...]:
    """Those that divide K, about eight, best guess first: for where what adds the parts up has to run anyway."""
    found = [*candidates(m, n, k, item_bytes), *(chains_of(m, n, k) if item_bytes == 2 else ())]
    ranked = sorted((c for c in found if c.split_k > 1), key=lambda c: cycles(c, m, n, k, 1, item_bytes, False))
    kept = list[GemmConfig]()
    for config in ranked:
        alike = [c for c in kept if (c.block_m, c.block_n, c.split_k) == (config.block_m, config.block_n, config.split_k)]
        if len(kept) < 8 and not alike and config.shared_bytes_of_one * item_bytes <= (SHARED_BYTES if kept else SHARED_EVERYWHERE):
            kept.append(config)
    return tuple(replace(c, ahead=constant) for c in kept)


def candidates(m: int, n: int, k: int, item_bytes: int) -> Iterator[GemmConfig]:
    half = item_bytes == 2
    least = min(256 if m <= 16 else 512, max(16, up(m)) * max(16, up(n)))
    for block_m in (16, 32, 64, 128, 256) if half else (16, 32, 64):
        for block_n in (16, 32, 64, 128, 256) if half else (16, 32, 64, 128):
            if block_m > max(16, up(m)) or block_n > max(16, up(n)) or not least <= block_m * block_n <= 32768:
                continue
            for block_k in (16, 32, 64, 128) if half else (16, 32):
                if block_k > max(16, up(k)) or (half and block_k < 64 <= k):
                    continue
                for warps in _warps(block_m * block_n, half):
                    stages = 2 if k <= block_k else 3 if block_m * block_n >= 16384 else 4
                    for s in {stages, min(stages + 1, max(2, -(-k // block_k)))}:
                        for split in (1, 2, 3, 4, 6, 8):
                            if split == 1 or (k >= split * 2 * block_k and m * n <= 1 << 20):
                                yield GemmConfig(block_m, block_n, block_k, warps, s, split)


def chains_of(m: int, n: int, k: int) -> Iterator[GemmConfig]:
    """Small tiles of half precision through all of K in few steps: where blocks are few, what counts is how long one takes."""
    for block_m, block_n in itertools.product((16, 32, 64), (16, 32, 64)):
        if block_m > max(16, up(m)) or block_n > max(16, up(n)) or block_m * block_n > 2048 or (m > 16 and block_m * block_n < 512):
            continue
        for block_k, chains, warps in itertools.product((64, 128, 256, 512), (1, 2, 4), (2, 4)):
            if block_m == 64 and warps == 4 and chains > 1:  # warp-group products of several sums wait for each other
                continue
            depth = block_k * chains
            steps = -(-k // depth)
            if (
                depth < 128
                or steps * depth >= 2 * k
                or block_m * block_n * chains > 32 * 32 * warps
                or (block_k > 64 and steps > 8)
            ):
                continue
            for split in (1, 2, 3, 4):
                if split == 1 or (k >= split * depth and m * n <= 1 << 20):
                    stages = min(5, -(-steps // split) + 1)
                    yield GemmConfig(block_m, block_n, block_k, warps, stages, split, chains=chains)


def _warps(area: int, half: bool) -> tuple[int, ...]:
    if not half:
        return (4,) if area <= 4096 else (8,)
    return (8,) if area > 16384 else (4, 8) if area >= 8192 else (4,)


def cycles(c: GemmConfig, m: int, n: int, k: int, batch: int, item_bytes: int, gated: bool) -> float:
    """What the product takes, roughly: the slowest of computing, of moving tiles and of waiting, and a little of the others."""
    depth, area = c.block_k * c.chains, c.block_m * c.block_n
    blocks = -(-m // c.block_m) * -(-n // c.block_n) * batch * c.split_k
    steps = -(-k // (depth * c.split_k))
    part = steps * depth
    held = min(4, resident(c, item_bytes, gated)) if c.programs else resident(c, item_bytes, gated)
    if not held:
        return float("inf")
    on_one = -(-blocks // PROCESSORS)
    wide = c.block_m >= 64 and c.num_warps % 4 == 0
    rate = 60 if item_bytes == 4 else 3100 if wide else 650
    compute = on_one * area * part / (rate if c.block_k > 16 else 0.7 * rate)
    whole_bytes = (min(c.block_m, m) + min(c.block_n, n)) * min(part, k) * item_bytes
    tile_bytes = whole_bytes * ({16: 1.3, 32: 1.1}.get(c.block_k, 1) if c.block_k < k else 1)  # pieces of rows shorter than a line
    tiles = max(blocks * tile_bytes / L2_BYTES, on_one * tile_bytes / L2_BYTES_EACH)
    # a sum's next product waits for its last; those of other sums run meanwhile. Narrow products load operands into registers
    narrow = max(CHAIN, 10 * c.chains * area / (128 * c.num_warps)) + 0.4 * (c.block_m + c.block_n) * c.chains
    computing = c.block_k / 16 * (18 + area / 1250 if wide else narrow)
    arriving = tile_bytes / (steps * L2_BYTES_EACH)
    gating = GATING * c.block_m * depth / (32 * c.num_warps) if gated else 0
    # a step waits for its piece of the gate where that is less than four bytes a thread, which is not loaded ahead
    exposed = gating + (EXPOSED if gated and c.block_k < 64 * c.num_warps else 0)
    step = max(LATENCY / max(1, c.num_stages - 1), 90 + depth / 4 + computing / 2, computing) + exposed
    writing = area * item_bytes / WRITTEN_EACH
    first = START + LATENCY + arriving
    each = computing + exposed + 0.6 * writing * min(held, on_one) + (steps - 1) * step
    # the loads of a program's next large tile are under way while it writes the last one, unless they go through registers
    again = 0.75 * first if c.programs and area >= 16384 and steps > 1 and not gated else first
    waiting = first + each + (-(-blocks // (PROCESSORS * held)) - 1) * (again + each)
    memory = ((m * k + n * k) * tile_bytes / whole_bytes + m * n) * batch * item_bytes / DRAM_BYTES
    issued = on_one * (writing + (GATING_EACH * c.block_m * part if gated else 0))
    terms = (compute, tiles, waiting, memory, issued)
    adding = LAUNCH + LATENCY + 2 * c.split_k * m * n * batch * 4 / L2_BYTES if c.split_k > 1 else 0
    return max(terms) + 0.16 * sum(terms) + adding


def resident(c: GemmConfig, item_bytes: int, gated: bool) -> int:
    """How many blocks one multiprocessor holds at once."""
    registers = c.block_m * c.block_n * c.chains / (32 * c.num_warps) + 64
    registers += c.block_m * c.block_k / (64 * c.num_warps) if gated else 0
    if registers > 255:
        return 0
    shared = c.shared_bytes_of_one * item_bytes
    if gated:  # pieces of the gate that are loaded ahead
        shared += max(0, c.num_stages - 2) * c.block_m * c.block_k * c.chains * item_bytes
    return min(SHARED_BYTES // shared, 64 // c.num_warps, int(REGISTERS // (registers * 32 * c.num_warps)))


def fits_everywhere(c: GemmConfig, item_bytes: int) -> bool:
    return c.shared_bytes_of_one * item_bytes <= SHARED_EVERYWHERE


def up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
