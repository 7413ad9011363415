"""Which layers are pruned, and why others are not."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.sparsity.layers import Weight, reason_against, weights_of
from torchsmith.sparsity.pattern import two_four_mask

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class LayerSparsity:
    """What became of one layer's weights.

    name: the module's path in the model, and the tensor's name where it has several to prune. kind: the module's class. pruned:
    whether they are 2:4 now. kept: of the sum of their magnitudes the share that was kept, 0 to 1; None where they were left
    alone. reason: why they were; empty where they were not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pruned: bool
    kept: float | None
    reason: str


@dataclass(frozen=True)
class SparsityReport:
    """Every layer that has weights, in the model's order; shows itself as a table."""

    model: str
    layers: tuple[LayerSparsity, ...]

    @property
    def pruned(self) -> tuple[LayerSparsity, ...]:
        return tuple(layer for layer in self.layers if layer.pruned)

    @property
    def summary(self) -> str:
        """One sentence."""
        shares = [layer.kept for layer in self.pruned if layer.kept is not None]
        start = f"{len(shares)} of {len(self.layers)} layers of {self.model} pruned to 2:4"
        if not shares:
            return start
        low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
        return f"{start}; of the sum of each one's magnitudes {low if low == high else f'{low} to {high}'} stayed"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text  # plain: shapes in brackets are no markup

        table = Table()
        for column in ("layer", "kind", "weights", "kept", "left alone because"):
            table.add_column(column, justify="right" if column == "kept" else "left", overflow="fold")
        for layer in self.layers:
            kept = "" if layer.kept is None else f"{layer.kept:.1%}"
            row = (layer.name, layer.kind, " × ".join(map(str, layer.shape)), kept, layer.reason)
            table.add_row(*map(Text, row))
        return Group(self.summary, table)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, no_color=True, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    __repr__ = __str__


@dataclass(frozen=True)
class Pruning:
    """What is to be done: the masks of the weights to prune, and the report of all."""

    masks: tuple[tuple[Weight, Tensor], ...]
    report: SparsityReport


def plan(model: nn.Module, *, skip: Collection[str] = ()) -> SparsityReport:
    """What `torchsmith.sparsify` would do to a model, without doing it. Arguments and errors are the same."""
    return pruning(model, skip).report


def pruning(model: nn.Module, skip: Collection[str]) -> Pruning:
    """Raises InvalidInput where there is no model, nothing to prune or weights that are not finite, InvalidOption for `skip`."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        advice = "prune it before torch.jit.script or torch.jit.trace" if isinstance(model, nn.Module) else "pass the model itself"
        raise InvalidInput(f"sparsify() takes an nn.Module with layers, and got a {type(model).__name__}; {advice}")
    weights = list(weights_of(model))
    reasons = reason_against(model, weights, frozenset(_skipped(model, skip)))
    masks, layers = [], []
    for weight, reason in zip(weights, reasons, strict=True):
        kept = None
        if not reason:
            mask = two_four_mask(_finite(weight))
            masks.append((weight, mask))
            kept = _share(weight.tensor, mask)
        layers.append(LayerSparsity(weight.label, weight.kind, weight.shape, not reason, kept, reason))
    found = SparsityReport(type(model).__name__, tuple(layers))
    if not masks:
        raise InvalidInput(f"{found.model} has no layer that can be pruned to 2:4: {_told(found)}")
    return Pruning(tuple(masks), found)


def _skipped(model: nn.Module, skip: Collection[str]) -> Iterator[str]:
    """The names of the modules that `skip` names, with those inside them."""
    if isinstance(skip, str) or not isinstance(skip, Collection):
        raise InvalidOption(f"skip={skip!r}; it takes a collection of module names, such as {{'head', 'layer4.*.conv1'}}")
    names = [name for name, _ in model.named_modules() if name]
    for wanted in skip:
        chosen = fnmatch.filter(names, wanted) if isinstance(wanted, str) else []
        if not chosen:
            raise InvalidOption(f"skip has {wanted!r}, and {type(model).__name__} has no such module; {_near(wanted, names)}")
        yield from (name for name in names if any(name == c or name.startswith(f"{c}.") for c in chosen))


def _near(wanted: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(wanted), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "model.named_modules() lists them"


def _finite(weight: Weight) -> Tensor:
    if not bool(torch.isfinite(weight.tensor).all()):
        raise InvalidInput(
            f"the weights of {weight.label or 'the model'} are not all finite numbers; load the trained weights again, or skip it"
        )
    return weight.tensor


def _share(weight: Tensor, mask: Tensor) -> float:
    magnitudes = weight.detach().abs().double()
    total = magnitudes.sum().item()
    return magnitudes.mul_(mask).sum().item() / total if total else 1.0


def _told(report: SparsityReport) -> str:
    """Every reason, with the first layer that has it."""
    first: dict[str, str] = {}
    for layer in report.layers:
        first.setdefault(layer.reason, layer.name or "the model itself")
    shown = [f"{name} ({reason})" for reason, name in list(first.items())[:4]]
    return ", ".join(shown) if shown else "it has no convolution and no linear layer; prune the model that holds them"
