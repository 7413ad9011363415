"""The table of 2:4 weights against dense ones: what was found out, as JSON and Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchsmith.bench.machine import Machine

PRECISIONS = ("f16", "int8")


@dataclass(frozen=True)
class Product:
    """A layer as the product of rows (M, K) with weights (N, K), and how many of the model's layers are one of these sizes."""

    model: str
    layer: str
    layers: int
    rows: int
    features: int
    terms: int


@dataclass(frozen=True)
class Timed:
    """A product in one precision. Microseconds; None of what was not timed. sparse, dense: the fastest tactics. against: why none
    is sparse. error: of the fastest sparse tactic's results, relative to float64's norm. others: every tactic's time.
    """

    product: Product
    precision: str
    dense_us: float | None
    dense: str
    sparse_us: float | None
    sparse: str
    error: float | None
    against: str
    others: Mapping[str, float | str]

    @property
    def gain(self) -> float | None:
        return self.dense_us / self.sparse_us if self.dense_us and self.sparse_us else None


@dataclass(frozen=True)
class WholeNode:
    """Of a model's engine. layers: how many. microseconds of the fastest tactics, alone; None of what was not timed."""

    node: str
    output: str
    layers: int
    runs: str
    sparse_us: float | None
    dense_us: float | None
    against: str


@dataclass(frozen=True)
class Whole:
    """A pruned model: milliseconds a call, on its stream. sparse_layers: how many of its products run on sparse tensor cores.

    nodes: those with 2:4 weights, what follows them in the same kernels included, those that are alike together.
    """

    model: str
    batch: int
    precision: str
    dense_ms: float | None
    sparse_ms: float | None
    sparse_layers: int
    products: int
    dense_error: float
    sparse_error: float
    eager_error: float
    note: str = ""
    nodes: tuple[WholeNode, ...] = ()


@dataclass
class Table:
    """left_dense: of each model how many layers no sparse product is tried for, by the reason."""

    machine: Machine
    date: str
    batch: int
    left_dense: dict[str, dict[str, int]] = field(default_factory=dict)
    products: list[Timed] = field(default_factory=list)
    models: list[Whole] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def markdown(table: Table) -> str:
    """Products of a model in the order of their layers, a pair of precisions a line; then whole models."""
    head = ["model", "layer", "layers", "M × N × K"]
    head += [f"{p} {what}" for p in PRECISIONS for what in ("dense µs", "sparse µs", "dense / sparse")]
    lines = [head, ["---"] * 4 + ["---:"] * (len(head) - 4)]
    pairs: dict[Product, dict[str, Timed]] = {}
    for t in table.products:
        pairs.setdefault(t.product, {})[t.precision] = t
    for p, by in pairs.items():
        cells = [p.model, p.layer, str(p.layers), f"{p.rows} × {p.features} × {p.terms}"]
        for precision in PRECISIONS:
            found = by.get(precision)
            times = (found.dense_us, found.sparse_us, found.gain) if found else (None, None, None)
            cells += [number(time_us, digits) for time_us, digits in zip(times, (1, 1, 2), strict=True)]
        lines.append(cells)
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    if table.models:
        head = ["model", "batch", "precision", "sparse layers", "dense ms", "sparse ms", "dense / sparse", ""]
        text += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for w in table.models:
            gain = w.dense_ms / w.sparse_ms if w.dense_ms and w.sparse_ms else None
            cells = [w.model, str(w.batch), w.precision, f"{w.sparse_layers} of {w.products}"]
            cells += [number(w.dense_ms, 3), number(w.sparse_ms, 3), number(gain, 3), w.note]
            text.append("| " + " | ".join(cells) + " |")
        for w in table.models:
            text += node_lines(w)
    for model, reasons in table.left_dense.items():
        text += ["", f"Dense in {model}: " + "; ".join(f"{count} × {why}" for why, count in reasons.items()) + "."]
    return "\n".join([*text, "", f"{table.machine}; batch {table.batch}, {table.date}.", ""])


def node_lines(whole: Whole) -> list[str]:
    """The nodes of a model's engine that have both kinds of tactics, as a table."""
    head = ["node", "gives", "layers", "dense µs", "sparse µs", "dense / sparse", "runs"]
    lines = ["", f"{whole.model}, {whole.precision}, with what follows in the same kernel:", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|---|---:|---:|---:|---:|---|"]
    for n in whole.nodes:
        if n.dense_us and n.sparse_us:
            cells = [plain(n.node), n.output, str(n.layers), number(n.dense_us, 1), number(n.sparse_us, 1)]
            lines.append("| " + " | ".join([*cells, number(n.dense_us / n.sparse_us, 2), n.runs]) + " |")
    return lines


def plain(node: str) -> str:
    """ "Fused[gemm](Linear, Unary[relu])" as "Linear, relu"."""
    inside = node.partition("](")[2].removesuffix(")") if node.startswith("Fused[") else node
    while (without := re.sub(r"\([^()]*\)", "", inside)) != inside:
        inside = without
    return re.sub(r"\b\w+\[(\w+)\]", r"\1", inside)


def number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def write(table: Table, out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(table.to_json(), indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(markdown(table), encoding="utf-8")
