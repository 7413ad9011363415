"""One flag for every option of `torchsmith.compile`, made from the fields of torchsmith.config."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from torchsmith.config import options

SHORT = {"enabled_precisions": "--precision"}  # as `torchsmith bench` calls it
DEVICE = "where the engines run: cpu, cuda or cuda:0; the default is where the model's parameters are"


def with_compile_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a flag for every option in the place of its parameter `given`.

    `given` gets the flags that the user set, as `torchsmith.compile` takes them.
    """
    own = inspect.signature(command, eval_str=True).parameters
    device = inspect.Parameter(
        "device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, typer.Option(help=DEVICE)]
    )
    flags = {name: _parameter(field) for name, field in options().items()} | {"device": device}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in flags}
        command(**values, given={name: _read(value, name) for name, value in given.items() if value is not None})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in own.items() if name != "given"]
    run.__signature__ = inspect.Signature([*parameters, *flags.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*parameters, *flags.values())}
    return run


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """None where the flag was not used: then the option is not passed, and config.py alone knows the default."""
    flag = "--" + field.name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if isinstance(field.default, bool) else [flag]
    names += [SHORT[field.name]] if field.name in SHORT else []
    option = typer.Option(
        *names,
        help=field.metadata["help"] + _default(field.default),
        metavar=_metavar(field),
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_type(field) | None, option]
    )


def _type(field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata["choices"]
    if choices:
        return Enum(field.name, {choice: choice for choice in choices}, type=str)
    if isinstance(field.default, (bool, int)):
        return type(field.default)
    return int if field.type == "int | None" else str


def _metavar(field: dataclasses.Field[Any]) -> str | None:
    return "NAME,NAME" if isinstance(field.default, frozenset) else None


def _default(default: Any) -> str:
    """What --help says of it, as click says it of others."""
    if isinstance(default, frozenset):
        default = ",".join(sorted(str(v).removeprefix("torch.") for v in default)) or None
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return "" if default is None else f"  [default: {default}]"


def _read(value: Any, name: str) -> Any:
    """A flag's value as `compile` takes it."""
    if isinstance(value, Enum):
        return value.value
    field = options().get(name)
    return names(value) if field is not None and isinstance(field.default, frozenset) else value


def names(text: str) -> list[str]:
    """ "f32, bf16" as a list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
