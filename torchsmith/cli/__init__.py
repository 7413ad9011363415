"""The command line: `torchsmith compile | bench | explain | inspect | ops | doctor`.

A command is a function here in a file of its name. What it raises of torchsmith.errors becomes one sentence and exit code 2;
anything else is a bug, and shows its traceback.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from torchsmith.cli import bench, compile, doctor, inspect, ops, show
from torchsmith.errors import TorchsmithError
from torchsmith.version import __version__

USERS_MISTAKE, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """Runs a command, and says in a sentence why it did not work."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with show.warnings_as_sentences():
                return super().invoke(ctx)
        except TorchsmithError as problem:
            show.error(problem)
            raise typer.Exit(USERS_MISTAKE) from problem
        except KeyboardInterrupt as interrupt:
            show.error("; ".join(["interrupted", *map(str, interrupt.args)]))
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="torchsmith",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's columns cut the names of long flags
    pretty_exceptions_enable=False,  # a bug's traceback is reported as Python prints it
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"torchsmith {__version__}")
        raise typer.Exit()


@app.callback()
def torchsmith(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    """An inference compiler for PyTorch: what an engine can run is compiled, the rest stays in PyTorch, and all is one file.

    \b
    Example:
      torchsmith compile resnet50 -o resnet50.pt2
      python -c 'import torchsmith; fast = torchsmith.load("resnet50.pt2")'

    DEBUG=1 shows each stage and tracebacks; higher numbers show more.
    """


for command in (compile.compile, bench.bench, compile.explain, inspect.inspect, ops.ops, doctor.doctor):
    app.command(command.__name__)(command)


def main() -> None:
    """The entry point."""
    app()
