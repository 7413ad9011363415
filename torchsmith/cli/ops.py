"""`torchsmith ops`: what reaches the engines."""

from __future__ import annotations

from typing import Annotated

import typer

from torchsmith.cli import show


def ops(
    name: Annotated[str, typer.Argument(metavar="[TEXT]", help="only those with TEXT in their names", show_default=False)] = "",
    json: Annotated[bool, typer.Option("--json", help="print the names as JSON")] = False,
) -> None:
    """List the ATen operators that have a converter.

    An operator that is decomposed into these needs none. One with a converter can still be refused for its arguments:
    `torchsmith explain` says so for a model.

    \b
    Example:
      torchsmith ops conv
    """
    found = {operator: overloads for operator, overloads in converted().items() if name in operator}
    if json:
        show.as_json(found)
        return
    for operator, overloads in found.items():
        show.say(f"{operator}: {', '.join(overloads)}")
    show.say(f"{len(found)} operators, {sum(map(len, found.values()))} overloads", style="bold")


def converted() -> dict[str, list[str]]:
    """The overloads of each operator, both in alphabetical order."""
    from torchsmith.ops.registry import load_all

    found: dict[str, list[str]] = {}
    for overload in sorted(map(str, load_all())):
        operator, _, which = overload.rpartition(".")
        found.setdefault(operator, []).append(which)
    return found
