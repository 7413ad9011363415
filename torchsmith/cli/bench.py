"""`torchsmith bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsmith.cli import show
from torchsmith.cli.flags import names
from torchsmith.cli.models import named_models
from torchsmith.errors import InvalidOption

PEERS = "eager,torchscript,inductor,openvino,onnxruntime"  # torchsmith.bench.PEERS, without importing it for --help


def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="timm names, transformers names or file.py:function", show_default=False)
    ],
    batch: Annotated[str, typer.Option(metavar="N,N", help="batch sizes")] = "1,8",
    precision: Annotated[str, typer.Option(metavar="NAME,NAME", help="of f32, bf16, f16")] = "f32,bf16",
    peers: Annotated[str, typer.Option(metavar="NAME,NAME", help="what to compare with")] = PEERS,
    seconds: Annotated[float, typer.Option(min=0.1, help="timing per model and batch size, all sides together")] = 20.0,
    memory: Annotated[bool, typer.Option(help="measure each side's peak memory too, in a process of its own")] = True,
    seed: Annotated[int, typer.Option(help="of the order in which the sides take turns")] = 0,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="also write the report: .json, .md, .png, .svg or .pdf; more than once for several",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Time torchsmith beside its peers, outputs checked first.

    All sides take turns in one run. A wrong output of torchsmith's stops it before anything is timed.

    \b
    Example:
      torchsmith bench resnet50 vit_small_patch16_224 --batch 1 --peers eager,openvino -o resnet50.png
    """
    from torchsmith.bench import check_ending, run_bench, table, write
    from torchsmith.bench.report import to_json

    files = [check_ending(path) for path in output or ()]
    with named_models():
        report = run_bench(
            models, batches(batch), names(precision), names(peers), seconds=seconds, memory=memory, seed=seed, progress=True
        )
    if json:
        print(to_json(report), end="")
    else:
        show.stdout().print(table(report))
    for path in files:
        write(report, path)


def batches(text: str) -> list[int]:
    if not all(part.isdecimal() for part in names(text)):
        raise InvalidOption(f"--batch {text}: it takes whole numbers with commas between them, such as 1,8")
    return [int(part) for part in names(text)]
