"""What users calibrate with, as calls of the program: tensors, tuples, (inputs, label) pairs, dicts of inputs by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from torchsmith.errors import InvalidInput


@dataclass(frozen=True)
class Batch:
    """One call of the program. number: of the user's batch, from 0. inputs: a value for every user input, in order.

    item: the user's batch. Where it was cut in calls of the program's own batch size, that is `size`, and the first `rows` of
    this one's are the item's; None where the call is the whole item.
    """

    number: int
    inputs: tuple[Any, ...]
    item: Any = None
    rows: int | None = None
    size: int | None = None


def batches_of(data: Iterable[Any], program: ExportedProgram, device: torch.device | None = None) -> Iterator[Batch]:
    """Each item of `data` as one or more calls of the program.

    An item is a tensor, a tuple or list whose leading entries are the model's positional inputs (a dict of keyword inputs may
    follow, and what else follows, such as labels, is left), or a dict of inputs by the names that the model's `forward` gives
    them; or a pair of such inputs, in a tuple or dict of their own, and a label. Where the program has a fixed batch size,
    an item of another one is cut in calls of that size; the last is filled up from the item's beginning. device: where the
    program's tensors are.

    Raises InvalidInput, which names the batch, for what the program does not take, for numbers that are not finite, and where
    there is no item at all.
    """
    calls = Calls.of(program)
    number = -1
    for number, item in enumerate(_items(data)):
        place = f"calibration batch {number}"
        values = calls.inputs(item, place)
        _check_finite(values, place)
        for inputs, rows, size in calls.cut(values, place):
            there = tuple(v.to(device) if isinstance(v, Tensor) and device is not None else v for v in inputs)
            yield Batch(number, there, item, rows, size)
    if number < 0:
        raise InvalidInput(
            "the calibration data is empty; some hundred typical inputs are enough. A generator is empty after its first use: "
            "pass a list or a loader"
        )


def told_of_constants(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; warns at their end where every floating input was one number throughout."""
    limits: dict[int, tuple[float, float]] = {}
    for batch in batches:
        for index, value in enumerate(batch.inputs):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                least, greatest = (float(limit) for limit in torch.aminmax(value.detach()))
                before = limits.get(index, (least, greatest))
                limits[index] = min(before[0], least), max(before[1], greatest)
        yield batch
    if limits and all(least == greatest for least, greatest in limits.values()):
        numbers = ", ".join(sorted({f"{least:g}" for least, _ in limits.values()}))
        warnings.warn(
            f"the calibration data are constant ({numbers}), so that ranges fit that number only; calibrate with typical inputs",
            stacklevel=2,
        )


def _items(data: Any) -> Iterable[Any]:
    """Raises InvalidInput for what has no batches."""
    if isinstance(data, (Tensor, Mapping)):  # the only batch
        return [data]
    if not isinstance(data, Iterable):
        raise InvalidInput(f"calibrator is a {type(data).__name__}; pass a DataLoader, a list of inputs or one of torchsmith.ptq")
    return _guarded(data)


def _guarded(data: Iterable[Any]) -> Iterator[Any]:
    """The items. Raises InvalidInput where reading one fails."""
    items, number = iter(data), 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:  # the user's own code may raise anything; it becomes the cause of what is raised
            raise InvalidInput(f"reading calibration batch {number} failed: {type(error).__name__}: {error}") from error
        yield item
        number += 1


def _check_finite(values: list[Any], place: str) -> None:
    for index, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            what = "NaN" if bool(value.isnan().any()) else "infinite numbers"
            raise InvalidInput(f"{place} has {what} in input {index}; calibrate with inputs as the model will get them")


@dataclass(frozen=True)
class Calls:
    """How the program is called. leaves: of each user input in order its name and its fake tensor, or the constant it was."""

    spec: pytree.TreeSpec
    leaves: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(program: ExportedProgram) -> Calls:
        vals = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        arguments = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        leaves = [(a.name, a.value if isinstance(a, ConstantArgument) else vals[a.name]) for a in arguments]
        assert program.call_spec.in_spec is not None
        return Calls(program.call_spec.in_spec, tuple(leaves))

    def inputs(self, item: Any, place: str) -> list[Any]:
        """The item's leaves in the program's order, constants as the program has them. Raises InvalidInput."""
        wanted = pytree.tree_unflatten(range(len(self.leaves)), self.spec)
        leaves, spec = pytree.tree_flatten(tuple(map(_without_more, self._call(item, place), wanted)))
        if spec != self.spec or len(leaves) != len(self.leaves):
            raise InvalidInput(f"{place} does not nest as the model's inputs do; the model takes {self._described()}")
        values = []
        for value, (name, known) in zip(leaves, self.leaves, strict=True):
            if isinstance(known, Tensor) and not isinstance(value, Tensor):
                raise InvalidInput(f"{place} has a {type(value).__name__} for {name}, and the model takes a tensor")
            values.append(value if isinstance(known, Tensor) else known)
        return values

    def _call(self, item: Any, place: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments out of an item."""
        args, kwargs = pytree.tree_unflatten(range(len(self.leaves)), self.spec)  # the structure, with indices of leaves
        if isinstance(item, Tensor) or (isinstance(item, Mapping) and bool(args) and isinstance(args[0], Mapping)):
            item = (item,)
        if isinstance(item, Mapping):
            return tuple(self._named(item, a, place) for a in args), {n: self._named(item, i, place, n) for n, i in kwargs.items()}
        if not isinstance(item, (tuple, list)):
            raise InvalidInput(f"{place} is a {type(item).__name__}; give a tensor, a tuple of them, or a dict of inputs by name")
        nests = bool(args) and isinstance(args[0], (tuple, list, dict))
        if len(item) == 2 and isinstance(item[0], (tuple, list, Mapping)) and not nests:
            if kwargs and isinstance(item[1], Mapping) and not isinstance(item[0], Mapping):
                return self._call((*item[0], item[1]), place)  # (positional inputs, keyword inputs)
            return self._call(item[0], place)  # (inputs, label)
        rest = item[len(args) :]
        if len(item) < len(args) or (kwargs and not rest):
            raise InvalidInput(f"{place} has {len(item)} entries; the model takes {self._described()}")
        if kwargs and isinstance(rest[0], Mapping):
            return tuple(item[: len(args)]), {n: self._named(rest[0], i, place, n) for n, i in kwargs.items()}
        return tuple(item[: len(args)]), dict(zip(kwargs, rest))

    def _named(self, item: Mapping[str, Any], index: Any, place: str, name: str = "") -> Any:
        """An entry of a dict. index: of the leaf that it becomes; name: of the argument, by default the leaf's own."""
        leaf = self.leaves[index] if isinstance(index, int) else ("", None)
        name = name or leaf[0]
        if name not in item:
            if isinstance(index, int) and not isinstance(leaf[1], Tensor):
                return leaf[1]
            raise InvalidInput(f"{place} has {', '.join(map(str, item))} and lacks {name}; the model takes {self._described()}")
        return item[name]

    def _described(self) -> str:
        return ", ".join(f"{name} {tuple(v.shape)}" for name, v in self.leaves if isinstance(v, Tensor))

    def cut(self, values: list[Any], place: str) -> Iterator[tuple[list[Any], int | None, int | None]]:
        """The call, or several of the program's own batch size, each with how many of its rows are the item's, and that size.

        Raises InvalidInput where shapes or dtypes do not fit.
        """
        tensors = [(v, known, name) for v, (name, known) in zip(values, self.leaves, strict=True) if isinstance(known, Tensor)]
        for value, known, name in tensors:
            if value.dim() != known.dim() or any(not _fits(a, b) for a, b in zip(value.shape[1:], known.shape[1:])):
                raise InvalidInput(f"{place} has {name} of shape {tuple(value.shape)}, and the model takes {tuple(known.shape)}")
            if value.dtype != known.dtype:
                raise InvalidInput(
                    f"{place} has {name} of {value.dtype}, and the model takes {known.dtype}; give {name}.to({known.dtype}), "
                    "if that is what the model is called with"
                )
            if not value.numel() and not any(isinstance(size, int) and size == 0 for size in known.shape):
                raise InvalidInput(f"{place} has {name} of shape {tuple(value.shape)}, which is empty; leave empty batches out")
        self._check_relations(tensors, place)
        if all(_fits(value.shape[0], known.shape[0]) for value, known, _ in tensors if value.dim()):
            yield values, None, None
            return
        sizes = {(value.shape[0], known.shape[0]) for value, known, _ in tensors if value.dim()}
        (given, taken) = next(iter(sizes))
        if len(sizes) > 1 or not isinstance(taken, int) or not given:
            raise InvalidInput(f"{place} has a batch size that does not fit; the model takes {self._described()}")
        rows = torch.arange(-(-given // taken) * taken) % given
        for number, part in enumerate(rows.split(taken)):
            inputs = [v[part.to(v.device)] if isinstance(v, Tensor) else v for v in values]
            yield inputs, min(taken, given - number * taken), taken

    def _check_relations(self, tensors: list[tuple[Tensor, Tensor, str]], place: str) -> None:
        """Raise InvalidInput where sizes that are one symbol of the model's differ, or one is not what others make it."""
        sizes: dict[Any, tuple[int, str]] = {}
        made: list[tuple[Any, int, str]] = []
        for value, known, name in tensors:
            for dim, (size, wanted) in enumerate(zip(value.shape, known.shape, strict=True)):
                expression = None if isinstance(wanted, int) else wanted.node.expr
                where = f"dimension {dim} of {name}"
                if expression is not None and expression.is_Symbol and expression not in sizes:
                    sizes[expression] = size, where
                elif expression is not None and expression.free_symbols:
                    made.append((expression, size, where))
        for expression, size, where in made:
            symbols = expression.free_symbols
            if not symbols <= sizes.keys():
                continue
            right = expression.subs({symbol: sizes[symbol][0] for symbol in symbols})
            if right != size:
                by = " and ".join(sizes[symbol][1] for symbol in symbols)
                raise InvalidInput(f"{place} has {size} for {where}, and by {by} it should be {right}")


def _without_more(given: Any, wanted: Any) -> Any:
    """The arguments, or one of them, with dicts that have no more than the model's own, such as labels."""
    if isinstance(given, tuple) and type(wanted) is tuple and len(given) == len(wanted):
        return tuple(map(_without_more, given, wanted))
    if isinstance(given, Mapping) and type(wanted) is dict and wanted.keys() <= given.keys():
        return {key: _without_more(given[key], value) for key, value in wanted.items()}
    return given


def _fits(size: int, known: Any) -> bool:
    """Whether a size is the program's; a symbolic one takes any."""
    return not isinstance(known, int) or size == known
