"""What `torchsmith inspect` shows of an engine of the cuda backend: its steps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchsmith.cli import show
from torchsmith.errors import InvalidOption

if TYPE_CHECKING:
    from torchsmith.backends.cuda.inspect import Profile, StepRow
    from torchsmith.package.archive import Archive
    from torchsmith.runtime.plan import Plan


def sizes_given(text: str) -> dict[str, int]:
    """ "s0=8,s1=128" as numbers. Raises InvalidOption."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.partition("=")
        if not name.isidentifier() or not number.isdecimal():
            raise InvalidOption(f"--at {text}: it takes sizes by their names, such as s0=8,s1=128")
        found[name] = int(number)
    return found


def profiles(archive: Archive, plan: Plan, at: Mapping[str, int], measure: bool) -> list[Profile | None]:
    """One for each engine, in order; None of those that other backends made. Sizes that are not given are the least that may be."""
    from torchsmith.backends.cuda.inspect import profile, symbols_of
    from torchsmith.backends.cuda.plan import read
    from torchsmith.runtime.tensors import to_bytes

    found: list[Profile | None] = []
    for call in plan.engine_calls:
        if call.spec.backend != "cuda":
            found.append(None)
            continue
        engine = to_bytes(archive.entries[archive.header["tensors"][call.constant]["entry"]])
        least = {name: plan.symbols[name][0] if name in plan.symbols else 1 for name in symbols_of(read(engine)[0])}
        found.append(profile(engine, {**least, **{n: size for n, size in at.items() if n in least}}, measure))
    return found


def print_profile(number: int, profile: Profile) -> None:
    """A line a step, and what they add up to."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sizes = ", ".join(f"{name}={size}" for name, size in profile.at.items())
    made = Table(
        title=f"engine {number}" + (f" at {sizes}" if sizes else "") + f", against the roofline of {profile.chip}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("step", no_wrap=True)
    made.add_column("op", overflow="fold", ratio=1)
    made.add_column("tactic", no_wrap=True)
    pruned = any(row.sparsity for row in profile.rows)
    for name in ("grid", "output", "moved", "GFLOP", "µs", *(["2:4"] if pruned else []), "roof"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("from", overflow="fold", max_width=34)
    for row in profile.rows:
        made.add_row(str(row.number), *map(Text, cells(row, pruned)))
    show.stdout().print(made)
    show.say(totals(profile))
    if pruned:
        show.say(sparsity(profile))


def cells(row: StepRow, pruned: bool = False) -> list[str]:
    """pruned: with what 2:4 weights gain."""
    return [
        short(row.op) if row.tactic else "〃",
        row.tactic.partition(" ")[0] if row.tactic else row.kernel,
        "×".join(map(str, row.grid)) or "PyTorch",
        row.output,
        show.size(row.bytes),
        f"{row.flops / 1e9:.3f}" if row.flops else "",
        "" if row.microseconds is None else f"{row.microseconds:.2f}",
        *([gained(row)] if pruned else []),
        "" if row.share is None else f"{100 * row.share:.0f} %",
        row.origin.partition(" at ")[2].partition("  ")[0] or row.origin,
    ]


def gained(row: StepRow) -> str:
    """ "sparse 1.42×", "dense" with what sparse would be, and nothing for other steps."""
    if row.sparsity is None:
        return ""
    gain = row.sparsity.gain
    return ("sparse" if row.sparsity.sparse else "dense") + ("" if gain is None else f" {gain:.2f}×")


def sparsity(profile: Profile) -> str:
    """ "12 of 53 nodes with 2:4 weights run on sparse tensor cores: 1.23× as fast as dense, 41.0 µs less; ..." """
    found = [row.sparsity for row in profile.rows if row.sparsity is not None]
    sparse = [s for s in found if s.sparse]
    text = f"{len(sparse)} of {len(found)} nodes with 2:4 weights run on sparse tensor cores"
    pairs = [(s.dense_us, s.sparse_us) for s in sparse if s.dense_us is not None and s.sparse_us is not None]
    if pairs:
        dense, fast = map(sum, zip(*pairs, strict=True))
        text += f": {dense / fast:.2f}× as fast as the best dense tactics, {dense - fast:.1f} µs less"
    if slower := sum(s.gain is not None for s in found if not s.sparse):
        text += f"; {slower} are faster dense, as timed"
    for why, count in Counter(s.against for s in found if s.against).most_common():
        text += f"; {count} cannot: {why}"
    return text


def short(op: str) -> str:
    """ "Fused[gemm](Linear, Unary[relu])" as "Linear, relu": without attributes, which --json has."""
    inside = re.sub(r"^Fused\[\w+\]\((.*)\)$", r"\1", op)
    while (without := re.sub(r"\([^()]*\)", "", inside)) != inside:
        inside = without
    return re.sub(r"\b(?:Unary|Binary|Compare|Reduce)\[(\w+)\]", r"\1", inside)


def totals(profile: Profile) -> str:
    """ "93 steps move 20.1 MiB and multiply 0.78 GFLOP; ..." """
    rows = profile.rows
    text = (
        f"{len(rows)} steps move {show.size(sum(r.bytes for r in rows))} and multiply {sum(r.flops for r in rows) / 1e9:.2f} GFLOP"
    )
    timed = [r for r in rows if r.microseconds is not None]
    if timed:
        how = "measured in place" if timed[0].timed == "measured" else "each as it was timed alone when the engine was built"
        text += f"; they take {sum(r.microseconds or 0.0 for r in timed):.1f} µs, {how}"
    if any(r.least_us is not None for r in rows):
        text += f"; {profile.chip} could do it in {sum(r.least_us or 0.0 for r in rows):.1f} µs"
    return text
