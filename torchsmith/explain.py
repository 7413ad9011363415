"""What became of a model: its engines, what stayed in PyTorch, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchsmith.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Group

    from torchsmith.runtime.compiled import CompiledModule
    from torchsmith.runtime.hybrid import HybridScript


@dataclass(frozen=True)
class Explanation:
    """The compiled module's report; shows itself as tables.

    segments: one dictionary an engine (backend, precision, ops, inputs, outputs, engine_bytes, seconds, weights:
    of how many matrix products they are constant, two_four_weights: of how many of those they are 2:4; with int8 or fp8 also
    layers: that multiply matrices, and eight_bit_layers: how many of those compute in eight bits). refusals: one
    a node that stayed in PyTorch (node, op, reason, where). Of a TorchScript module that was compiled in parts, engines also
    have the path of their submodule (part), and the last refusal is of the module itself, whose control flow stayed.
    """

    report: dict[str, Any]

    @property
    def segments(self) -> list[dict[str, Any]]:
        segments: list[dict[str, Any]] = self.report["segments"]
        return segments

    @property
    def refusals(self) -> list[dict[str, str]]:
        refusals: list[dict[str, str]] = self.report["refusals"]
        return refusals

    @property
    def layers(self) -> list[dict[str, str]]:
        """Every layer that multiplies matrices, where int8 or fp8 was asked for; empty elsewhere.

        name: its module's path and its node's. precision: "int8", "float8_e4m3fn", or the float that it computes in. reason: why
        it is not in eight bits; empty where it is.
        """
        layers: list[dict[str, str]] = self.report.get("layers", [])
        return layers

    @property
    def eight_bits(self) -> str:
        """ "17 of 20 layers in int8", with fp8 both counts; empty where neither was asked for."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            if not layer["reason"]:
                counts[layer["precision"]] = counts.get(layer["precision"], 0) + 1
        shown = [f"{count} of {len(self.layers)} layers in {name}" for name, count in counts.items()]
        return " and ".join(shown) or (f"none of {len(self.layers)} layers in 8 bits" if self.layers else "")

    @property
    def contest(self) -> dict[str, Any] | None:
        """What a calibrated model was timed at on the GPU that it was compiled on; None where it was not.

        eight_bits_ms, floats_ms: of a call, with layers in eight bits and with none. kept_eight_bits: whether the first was kept.
        """
        contest: dict[str, Any] | None = self.report.get("contest")
        return contest

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """What an accuracy budget led to; None where there was none.

        budget, allowed: what may be lost. spent: what is, measured_on the engines or a simulation, over so many batches; error: the
        outputs' relative error. time: of the model's matrix work by a cost model, as a share of that in the most accurate float.
        layers: name, precision, gain (the layer's part of that saving) and alone: by precision the loss with nothing else rounded.
        """
        accuracy: dict[str, Any] | None = self.report.get("accuracy")
        return accuracy

    @property
    def summary(self) -> str:
        """One sentence."""
        inside, total, script = self.report["ops_in_engines"], self.report["ops"], self.report.get("script")
        if not self.segments:
            return f"no engine: {script} runs in TorchScript" if script else f"no engine: all {total} ops run in PyTorch"
        engines = "1 engine" if len(self.segments) == 1 else f"{len(self.segments)} engines"
        rest = f", the control flow of {script} in TorchScript" if script else ""
        eight = f"; {self.eight_bits}" if self.layers else ""
        return f"{engines} ({self.report['backend']}) with {inside} of {total} ops; {total - inside} in PyTorch{rest}{eight}"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text  # plain: shapes in brackets are no markup

        parts: list[Any] = [self.summary]
        if self.segments:
            table = Table(title="engines", title_justify="left")
            named = ["part"] if "script" in self.report else []
            sparse = ["2:4 weights"] if any(s.get("two_four_weights") for s in self.segments) else []
            eight = ["8-bit layers"] if self.layers else []
            for column in ("#", *named, "backend", "precision", "ops", *eight, *sparse, "inputs", "outputs", "MiB", "built in"):
                table.add_column(column, justify="right" if column in ("#", "ops", "MiB", "built in") else "left", overflow="fold")
            for number, s in enumerate(self.segments):
                size, seconds = f"{s['engine_bytes'] / 2**20:.1f}", f"{s['seconds']:.2f} s"
                row = (
                    str(number),
                    *(s[name] for name in named),
                    s["backend"],
                    s["precision"],
                    str(s["ops"]),
                    *(f"{s.get('eight_bit_layers', 0)} of {s.get('layers', 0)}" for _ in eight),
                    *(f"{s['two_four_weights']} of {s['weights']}" for _ in sparse),
                    _lines(s["inputs"]),
                    _lines(s["outputs"]),
                    size,
                    seconds,
                )
                table.add_row(*map(Text, row))
            parts.append(table)
        if self.contest:
            parts.append(_contest(self.contest))
        if self.accuracy:
            parts += _accuracy(self.accuracy)
        if any(layer["reason"] for layer in self.layers):
            parts.append(_in_floats(self.layers))
        if self.refusals:
            table = Table(title="in PyTorch", title_justify="left")
            for column in ("op", "reason", "where"):
                table.add_column(column, overflow="fold")
            for (op, reason, where), nodes in self._grouped().items():
                table.add_row(Text(op + (f" (×{len(nodes)})" if len(nodes) > 1 else "")), Text(reason), Text(where))
            parts.append(table)
        return Group(*parts)

    def _grouped(self) -> dict[tuple[str, str, str], list[str]]:
        groups: dict[tuple[str, str, str], list[str]] = {}
        for r in self.refusals:
            groups.setdefault((r["op"], r["reason"], r["where"]), []).append(r["node"])
        return groups

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, no_color=True, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    __repr__ = __str__


def _in_floats(layers: list[dict[str, str]]) -> Any:
    """The layers that are not in eight bits, those of one reason and precision in one row."""
    from rich.table import Table
    from rich.text import Text

    rows: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        if layer["reason"]:
            rows.setdefault((layer["precision"], layer["reason"]), []).append(layer["name"])
    table = Table(title="layers in floats", title_justify="left")
    for column in ("layer", "precision", "reason"):
        table.add_column(column, overflow="fold")
    for (precision, reason), names in rows.items():
        table.add_row(*map(Text, (_lines(names), precision, reason)))
    return table


def _contest(found: dict[str, Any]) -> str:
    kept = "eight bits were kept" if found["kept_eight_bits"] else "floats were kept (require_eight_bits=True keeps eight bits)"
    return f"timed here: {found['eight_bits_ms']:.4g} ms a call in eight bits, {found['floats_ms']:.4g} ms in floats; {kept}"


def _accuracy(found: dict[str, Any]) -> list[Any]:
    """What each layer costs and gains, and a sentence on the whole."""
    from rich.table import Table
    from rich.text import Text

    counts: dict[str, int] = {}
    for layer in found["layers"]:
        counts[layer["precision"]] = counts.get(layer["precision"], 0) + 1
    tried = sorted({precision for layer in found["layers"] for precision in layer["alone"]})
    table = Table(title="precisions within the accuracy budget", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("precision")
    for precision in tried:
        table.add_column(f"{precision} alone loses", justify="right")
    table.add_column("time gained", justify="right")
    for layer in found["layers"]:
        alone = (_loss(layer["alone"][precision]) if precision in layer["alone"] else "" for precision in tried)
        gain = f"{100 * layer['gain']:.1f} %" if layer["gain"] else ""
        table.add_row(*map(Text, (layer["name"], layer["precision"], *alone, gain)))
    layers = ", ".join(f"{count} {precision}" for precision, count in counts.items())
    sentence = (
        f"accuracy: {found['budget']} allowed, {found['spent']:.3g} measured on {found['measured_on']} over {found['batches']} "
        f"batches; layers: {layers}; their time by {found['gains_by']}: {100 * found['time']:.0f} % of that in the widest float"
    )
    return [sentence, table]


def _loss(alone: dict[str, float | None]) -> str:
    spent, error = alone["spent"], alone["error"]
    if spent is None or error is None:
        return "all"
    return f"{spent:.2g}" if spent == error else f"{spent:.2g} (error {error:.2g})"


def _lines(types: list[str]) -> str:
    return "\n".join(types[:4] + ([f"… {len(types) - 4} more"] if len(types) > 4 else []))


def explain(module: CompiledModule | HybridScript) -> Explanation:
    """The engines of a compiled module and, for every op that stayed in PyTorch, the reason and the user's source line.

    Raises InvalidInput for what `torchsmith.compile` and `torchsmith.load` did not return.
    """
    from torchsmith.runtime.finished import FinishedModule

    if not isinstance(module, FinishedModule):
        raise InvalidInput(f"explain() takes what torchsmith.compile() or load() returned; it got {type(module).__name__}")
    return Explanation(module.report)
