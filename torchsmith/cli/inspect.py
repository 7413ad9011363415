"""`torchsmith inspect`: what is in a package, and whether it runs here."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsmith.cli import show
from torchsmith.cli.layers import engines, print_layers
from torchsmith.cli.steps import print_profile, profiles, sizes_given
from torchsmith.errors import BackendUnavailable, EngineMismatch, PackageError
from torchsmith.target import Target

if TYPE_CHECKING:
    from torchsmith.backends.cuda.inspect import Profile
    from torchsmith.backends.tensorrt.engine import Engine
    from torchsmith.package.archive import Archive
    from torchsmith.runtime.plan import Input, Plan

ENGINE = ("backend", "precision", "ops", "inputs", "outputs", "engine_bytes")
LAYER = ("name", "precision", "reason")


@dataclass(frozen=True)
class Contents:
    """A package without its engines and weights.

    versions: what wrote it. target: what it was built for. engines: the report's words on each, those that ENGINE names.
    inputs, outputs: as the module's caller sees them, with ranges; unknown of TorchScript that was compiled in parts, whose class
    is script and whose compiled submodules are parts. weights: tensors that stay in PyTorch, in bytes. precisions: of the layers,
    where eight bits were asked for, and refusals: see `torchsmith.explain`. why_not: why it cannot run on this machine; empty where
    it can.
    """

    file: str
    bytes: int
    format: int
    versions: dict[str, str]
    target: dict[str, Any]
    script: str
    parts: list[str]
    inputs: list[str]
    outputs: list[str]
    engines: list[dict[str, Any]]
    weights: dict[str, int]
    precisions: list[dict[str, str]]
    refusals: list[dict[str, str]]
    why_not: str


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a package that torchsmith wrote", show_default=False)],
    at: Annotated[str, typer.Option(metavar="NAME=N,NAME=N", help="dynamic sizes to show GPU engines' steps at")] = "",
    measure: Annotated[bool, typer.Option("--measure", help="time every step of GPU engines, on this machine's GPU")] = False,
    json: Annotated[bool, typer.Option("--json", help="print what is in it as JSON")] = False,
) -> None:
    """Show what is in a package, and whether it runs here.

    Of engines for GPUs it lists every step. The whole file is held to its checksums; no engine is loaded and nothing in it is run,
    unless steps are measured.

    \b
    Example:
      torchsmith inspect b0.pt2
    """
    sizes = sizes_given(at)
    contents, found, built = shown(file, sizes, measure)
    if json:
        steps = [p and {"at": dict(p.at), "chip": p.chip, "steps": [row.to_json() for row in p.rows]} for p in found]
        show.as_json({**asdict(contents), "steps": steps, "layers": [e and [asdict(layer) for layer in e.layers] for e in built]})
        return
    print_contents(contents)
    for number, (profile, engine) in enumerate(zip(found, built, strict=True)):
        if profile is not None:
            print_profile(number, profile)
        if engine is not None:
            print_layers(number, engine)


def shown(file: Path, at: Mapping[str, int], measure: bool) -> tuple[Contents, list[Profile | None], list[Engine | None]]:
    """What is in a package, a profile of each engine of the cuda backend, and what TensorRT was given for each of its own."""
    from torchsmith.package.archive import read_archive

    archive = read_archive(str(file))
    contents = contents_of(file, archive)
    plan = plan_for_here(archive)[0] if "parts" not in archive.header else None
    return contents, profiles(archive, plan, at, measure) if plan else [], engines(archive, plan) if plan else []


def contents_of(file: Path, archive: Archive | None = None) -> Contents:
    """archive: the file, where it was read. Raises PackageError where the file is damaged or foreign, as `load` does."""
    from torchsmith.package.archive import read_archive

    archive = archive or read_archive(str(file))
    try:
        return _contents(file, archive)
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # checksums do not cover the header itself
        raise PackageError(f"{file}: its header cannot be read ({type(error).__name__}: {error}); save the module again") from error


def _contents(file: Path, archive: Archive) -> Contents:
    header, report = archive.header, archive.header["report"]
    plan, why_not = plan_for_here(archive) if "parts" not in header else (None, why_not_here(archive))
    return Contents(
        file=str(file),
        bytes=file.stat().st_size,
        format=header["format"],
        versions={
            "torchsmith": header["torchsmith"],
            "torch": header["torch"],
            **{k: v for k, v in header["backends"].items() if v},
        },
        target=Target.from_json(header["target"]).to_json(),
        script=report.get("script", ""),
        parts=list(dict.fromkeys(part["path"] for part in header.get("parts", ()))),
        inputs=[describe_input(i, plan) for i in plan.inputs] if plan else [],
        outputs=describe_outputs(plan) if plan else [],
        engines=[{key: engine[key] for key in ENGINE} for engine in report["segments"]],
        weights={name: archive.entries[header["tensors"][name]["entry"]].numel() for name in plan.tensors} if plan else {},
        precisions=[{key: layer[key] for key in LAYER} for layer in report.get("layers", ())],
        refusals=report["refusals"],
        why_not=why_not,
    )


def plan_for_here(archive: Archive) -> tuple[Plan | None, str]:
    """The plan, as far as this process knows its ops, and why it cannot run here."""
    from torchsmith import backends
    from torchsmith.package.load import check_target
    from torchsmith.package.plans import plan_from_json

    try:
        plan = plan_from_json(archive.header["plan"])
    except PackageError as problem:
        return None, str(problem)
    try:
        check_target(plan, Target.from_json(archive.header["target"]))
        for call in plan.engine_calls:
            backends.get(call.spec.backend)
    except (EngineMismatch, BackendUnavailable) as problem:
        return plan, str(problem)
    return plan, ""


def why_not_here(archive: Archive) -> str:
    """Why the parts of a module that was compiled in parts cannot run here; empty where they can."""
    return next((why for _, part in archive.parts() if (why := plan_for_here(part)[1])), "")


def describe_input(given: Input, plan: Plan) -> str:
    """ "x: float32[s0=1..16, 3, 224, 224] on cpu", or the value that was compiled in."""
    from torchsmith.runtime.plan import ConstantInput, SizeInput

    def size(dim: int | str) -> str:
        if dim not in plan.symbols:
            return str(dim)
        least, most = plan.symbols[str(dim)]
        return f"{dim}={least}..{'' if most is None else most}"

    if isinstance(given, ConstantInput):
        return f"{given.name}: always {given.value!r}"
    if isinstance(given, SizeInput):
        return f"{given.name}: int {size(given.size)}"
    return f"{given.name}: {tensor(given.dtype, map(size, given.shape))} on {given.device}"


def describe_outputs(plan: Plan) -> list[str]:
    """ "output['logits']: float32[s0, 1000]", or which op of PyTorch's makes it."""
    from torch._ops import OpOverload

    from torchsmith.runtime.plan import Call, EngineCall, Ref

    steps = {step.out: step for step in plan.body.steps}

    def made(value: Any) -> str:
        if not isinstance(value, Ref):
            return f"always {value!r}"
        step = steps.get(value.index)
        if not isinstance(step, Call):
            return "an input or a weight, as it is"
        source = steps.get(step.args[0].index) if step.target is operator.getitem and isinstance(step.args[0], Ref) else None
        if isinstance(source, EngineCall):
            spec = source.spec.outputs[step.args[1]]
            return tensor(spec.dtype, map(str, spec.shape))
        return f"made in PyTorch by {step.target if isinstance(step.target, OpOverload) else step.target.__name__}"

    paths = plan.nested_output.paths("output")
    return [f"{path}: {made(value)}" for path, value in zip(paths, plan.outputs, strict=True)]


def tensor(dtype: Any, sizes: Iterable[str]) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{', '.join(sizes)}]"


def print_contents(contents: Contents) -> None:
    in_torch = len(contents.refusals) - bool(contents.script)  # the last refusal is of the script, which is no op
    of = sum(engine["ops"] for engine in contents.engines) + in_torch
    kept = [f"{contents.script}, in TorchScript; {', '.join(contents.parts) or 'nothing'} compiled"] if contents.script else []
    rows = [
        ("file", f"{contents.file}, {show.size(contents.bytes)}, format {contents.format}, checksums right"),
        ("written by", ", ".join(f"{name} {version}" for name, version in contents.versions.items())),
        ("built for", str(Target.from_json(contents.target))),
        *(("input", text) for text in contents.inputs),
        *(("output", text) for text in contents.outputs),
        *((f"engine {number}", engine_line(engine)) for number, engine in enumerate(contents.engines)),
        *(("eight bits", text) for text in eight_bits(contents)),
        *(("control flow", text) for text in kept),
        (
            "in PyTorch",
            f"{in_torch} of {of} ops" + (f"; `torchsmith explain {contents.file}` says why" if contents.refusals else ""),
        ),
        *(
            []
            if contents.script
            else [("weights there", f"{len(contents.weights)} tensors, {show.size(sum(contents.weights.values()))}")]
        ),
    ]
    here = f"no: {contents.why_not}" if contents.why_not else "yes"
    show.facts([*((title, text, "") for title, text in rows), ("runs here", here, "red" if contents.why_not else "green")])


def eight_bits(contents: Contents) -> list[str]:
    """How many layers compute in eight bits; nothing where none was to."""
    from torchsmith.explain import Explanation

    found = Explanation({"layers": contents.precisions}).eight_bits
    rest = f"; `torchsmith explain {contents.file}` says why not the others"
    return [found + (rest if any(layer["reason"] for layer in contents.precisions) else "")] if found else []


def engine_line(engine: dict[str, Any]) -> str:
    return f"{engine['backend']}, {engine['precision']}, {engine['ops']} ops, {show.size(engine['engine_bytes'])}"
