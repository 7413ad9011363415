"""`torchsmith compile` and `torchsmith explain`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsmith import debug
from torchsmith.cli import models, show
from torchsmith.cli.flags import with_compile_flags
from torchsmith.errors import InvalidOption, PackageError

if TYPE_CHECKING:
    from torchsmith.explain import Explanation
    from torchsmith.runtime.compiled import CompiledModule
    from torchsmith.runtime.hybrid import HybridScript

Model = Annotated[str, typer.Argument(metavar="MODEL", help=models.MODEL_HELP, show_default=False)]
Batch = Annotated[str | None, typer.Option(metavar="N", help=models.BATCH_HELP)]
# Options whose values functions of the user's make, given as file.py:function.
MADE = (("calibrator", "calibration data are"), ("accuracy_budget", "a budget with a metric is"))
InputShapes = Annotated[list[str] | None, typer.Option("--input", metavar=models.INPUT_FORM, help=models.INPUT_HELP)]


@with_compile_flags
def compile(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.pt2", help="the package to write")],
    given: dict[str, Any],
    batch: Batch = None,
    input: InputShapes = None,
    force: Annotated[bool, typer.Option("--force", help="replace FILE even if it is no torchsmith package")] = False,
) -> None:
    """Compile a model and save it as one file.

    `torchsmith.load` reads it in another process, without compiling.

    \b
    Example:
      torchsmith compile efficientnet_b0 --batch 1..16 --precision bf16 -o b0.pt2
    """
    from torchsmith import explain, save

    check_output(output, force)
    try:
        with show.progress() as stages:
            debug.tell("model")
            fast = make(models.read(model, batch, input or ()), given)
            debug.tell("save")
            save(fast, output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{output} was not written") from None
    explained = explain(fast)
    show.say(explained.summary)
    show.say(f"{output}: {show.size(output.stat().st_size)}; {stages}")
    if explained.refusals:
        show.say(f"`torchsmith explain {output}` says why ops stayed in PyTorch", style="dim")


@with_compile_flags
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL|PACKAGE", help=models.MODEL_HELP + ", or a package", show_default=False)],
    given: dict[str, Any],
    batch: Batch = None,
    input: InputShapes = None,
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Show a model's engines, and why other ops stay in PyTorch.

    Each of those is shown with its line in the model's code. A package is asked for its report; anything else is compiled
    first, and not saved.

    \b
    Example:
      torchsmith explain my_model.py:make
    """
    explained = explanation(model, given, batch, input or ())
    if json:
        show.as_json(explained.report)
    else:
        show.stdout().print(explained)


def explanation(model: str, given: dict[str, Any], batch: str | None, inputs: list[str] | tuple[()]) -> Explanation:
    import torchsmith
    from torchsmith.explain import Explanation

    if models.is_file(model) and models.kind_of(Path(model)) == "package":
        if named := [*given, *["batch"] * (batch is not None), *["input"] * bool(inputs)]:
            flag = named[0].replace("_", "-")
            raise InvalidOption(f"{model} is compiled already, so --{flag} has nothing to change; compile the model again with it")
        return Explanation(report_of(model))
    with show.progress():
        debug.tell("model")
        return torchsmith.explain(make(models.read(model, batch, inputs), given))


def report_of(package: str) -> dict[str, Any]:
    """The report in a package's header; nothing else of the file is read. Raises PackageError."""
    from torchsmith.package.archive import read_header

    report = read_header(package).get("report")
    if not isinstance(report, dict):
        raise PackageError(f"{package}: its header has no report; save the module again")
    return report


def make(described: models.Given, options: dict[str, Any]) -> CompiledModule | HybridScript:
    import torchsmith

    for name, what in MADE:
        if isinstance(given := options.get(name), str) and ".py:" in given:
            from torchsmith.bench.models import function_of

            options = {**options, name: function_of(given, what)()}
    return torchsmith.compile(described.module, inputs=described.inputs, kwarg_inputs=described.kwarg_inputs or None, **options)


def check_output(output: Path, force: bool) -> None:
    """To be asked before minutes go into a compilation. Raises InvalidOption where the package could not be written there."""
    folder = output.absolute().parent
    if not folder.is_dir():
        raise InvalidOption(f"{output} cannot be written: there is no folder {folder}")
    if output.is_dir():
        raise InvalidOption(f"{output} cannot be written: it is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise InvalidOption(f"{output} cannot be written: the folder {folder} is not writable for you")
    if output.exists() and not force and models.kind_of(output) != "package":
        raise InvalidOption(f"{output} exists and is no torchsmith package; give --force to replace it, or another name")
