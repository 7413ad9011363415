"""`torchsmith bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchsmith.cli import show
from torchsmith.cli.flags import names
from torchsmith.cli.models import named_models
from torchsmith.errors import InvalidOption, VerificationError

if TYPE_CHECKING:
    from torchsmith.bench.report import Report

# torchsmith.bench's own, without importing it for --help
PEERS = {"cpu": "eager,torchscript,inductor,openvino,onnxruntime,nncf", "cuda": "eager,torchscript,cudagraph,inductor"}
PRECISIONS = {"cpu": "f32,bf16", "cuda": "f16"}
SECONDS = {"cpu": 20.0, "cuda": 4.0}


def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="timm names, transformers names or file.py:function", show_default=False)
    ],
    batch: Annotated[
        str | None, typer.Option(metavar="N,N", help="batch sizes; by default 1,8, on a GPU 1 and 128 or 32 by the model")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="of f32, bf16, f16, int8; f8 on a GPU  [default: f32,bf16; on a GPU f16]"),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help=f"what to compare with  [default: {PEERS['cpu']}; on a GPU {PEERS['cuda']}]"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="timing per model and batch size, all sides together  [default: 20; on a GPU 4]")
    ] = None,
    limit: Annotated[float, typer.Option(help="on a GPU: seconds that building one side may take")] = 150.0,
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
      torchsmith bench resnet50 bert_base --device cuda
    """
    from torchsmith.bench import check_ending, gpu_report, table, write
    from torchsmith.bench.report import to_json

    files = [check_ending(path) for path in output or ()]
    if device not in PEERS:
        raise InvalidOption(f"--device {device}: bench measures on cpu or cuda")
    precisions, sides = names(precision or PRECISIONS[device]), names(PEERS[device] if peers is None else peers)
    duration = seconds or SECONDS[device]
    with named_models():
        if device == "cuda":
            report = on_gpu(models, batch, precisions, sides, duration, limit, seed)
        else:
            from torchsmith.bench import run_bench

            report = run_bench(
                models, batches(batch or "1,8"), precisions, sides, seconds=duration, memory=memory, seed=seed, progress=True
            )
    if json:
        print(to_json(report), end="")
    else:
        show.stdout().print(gpu_report.table(report) if report.machine.gpu else table(report))
    for path in files:
        write(report, path)


def on_gpu(
    models: list[str], batch: str | None, precisions: list[str], peers: list[str], seconds: float, limit: float, seed: int
) -> Report:
    """Raises InvalidOption, and VerificationError where our own side failed or was wrong: there is no speed beside one."""
    from torchsmith.bench.gpu import GpuOptions, failures, run_on_gpu
    from torchsmith.bench.gpu_sides import GPU_BUILDERS

    if precisions not in (["f16"], ["bf16"], ["int8"], ["f8"]):
        raise InvalidOption(
            f"--precision {','.join(precisions)}: on a GPU all sides run in f16 or in bf16, and eager in f32 besides; int8 "
            "and f8 add our own in these to f16"
        )
    sides = tuple(name for name in GPU_BUILDERS if name in (*peers, "torchsmith"))
    unknown = tuple(name for name in peers if name not in GPU_BUILDERS)
    found = names(",".join(models))
    options = GpuOptions(
        tuple(found), tuple(batches(batch or "")), (*sides, *unknown), precisions[0], seconds, limit_s=limit, seed=seed
    )
    report = run_on_gpu(options, show=lambda text: None)
    if wrong := failures(report):
        raise VerificationError("; ".join(wrong))
    return report


def batches(text: str) -> list[int]:
    if not all(part.isdecimal() for part in names(text)):
        raise InvalidOption(f"--batch {text}: it takes whole numbers with commas between them, such as 1,8")
    return [int(part) for part in names(text)]
