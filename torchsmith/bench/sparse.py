"""2:4 weights against dense ones on a GPU: every product of pruned models with the fastest tactic of each kind, and whole models.

`python -m torchsmith.bench.sparse --help`. Products are timed by the tuner that builds engines use: in CUDA graphs, and only what
passed its comparison with float64.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.inspect import Sparsity, described, sparsity_of
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.plan import CallStep, Plan
from torchsmith.backends.cuda.timing import device_timer
from torchsmith.backends.cuda.timing_cache import TimingCache, tactic_text
from torchsmith.backends.cuda.tune import Problem, Search, Tuner, is_sparse
from torchsmith.bench.check import reference, worst_error
from torchsmith.bench.machine import this_machine
from torchsmith.bench.models import Inputs, load
from torchsmith.bench.sparse_table import PRECISIONS, Product, Table, Timed, Whole, WholeNode, markdown, write
from torchsmith.debug.progress import progress_of
from torchsmith.errors import BackendUnavailable, TorchsmithError
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize
from torchsmith.sparsity import plan as pruning_plan
from torchsmith.sparsity import sparsify, two_four_mask
from torchsmith.target import Target

MODELS = ("resnet50", "vit_base_patch16_224")
BATCH = 128
TACTICS = 8  # of each template: the tuner's own best guesses
BURST_S, ROUNDS = 0.05, 7
FACTOR, ROUNDING = 1.1, 2e-4  # a whole model's error may be this times eager's in float16, and its last rounding


def products_of(name: str, batch: int) -> tuple[list[Product], dict[str, int]]:
    """A pruned model's linear layers and 1×1 convolutions, those of one size together, and why other layers stay dense."""
    found = load(name)
    module, inputs = found.module(batch), found.inputs(batch, 0)
    reasons = {layer.name: layer.reason for layer in pruning_plan(module).layers}
    rows: dict[str, int] = {}

    def note(layer: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            rows[layer] = result.numel() // (result.shape[1] if result.dim() == 4 else result.shape[-1])

        return hook

    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for layer, part in layers.items():
        part.register_forward_hook(note(layer))
    with torch.no_grad():
        module.to("meta")(*(t.to("meta") for t in inputs.args))
    sizes: dict[tuple[int, int, int], list[str]] = {}
    left = Counter[str]()
    for layer, count in rows.items():
        part = layers[layer]
        if reason := reasons.get(layer, "") or not_a_product(part):
            left[reason] += 1
        else:
            features, terms = part.weight.shape[:2]
            sizes.setdefault((count, features, terms), []).append(layer)
    return [Product(name, names[0], len(names), *size) for size, names in sizes.items()], dict(left)


def not_a_product(layer: nn.Module) -> str:
    """Why the sparse tactics do not take a layer; empty where they may."""
    if not isinstance(layer, nn.Conv2d):
        return ""
    if layer.kernel_size != (1, 1):
        return "a k×k convolution, which as a product would write each picture k² times over"
    return "a 1×1 convolution with a stride" if layer.stride != (1, 1) else ""


# ---- products ----------------------------------------------------------------------------------------------------------------


def graph_of(products: Sequence[Product], precision: str) -> Graph:
    """Every product with a bias, side by side: x f16 (M, K), or int8 with scales, which gives f16."""
    rng = torch.Generator().manual_seed(0)
    outputs = []
    with Builder() as builder:
        for p in products:
            weight = torch.randn(p.features, p.terms, generator=rng) / p.terms**0.5
            weight = weight * two_four_mask(weight)
            bias = builder.constant(torch.randn(p.features, generator=rng).half(), "bias")
            if precision == "f16":
                x = builder.input(TensorType((p.rows, p.terms), torch.float16))
                outputs.append(Linear()(x, builder.constant(weight.half(), "weight"), bias))
                continue
            x = builder.input(TensorType((p.rows, p.terms), torch.int8))
            scale = weight.abs().amax(1) / 127
            rounded = builder.constant((weight / scale[:, None]).round().to(torch.int8), "weight")
            pair = (
                dequantize(x, 0.02, None, None, torch.float16),
                dequantize(rounded, builder.constant(scale, "scale"), None, 0, torch.float16),
            )
            outputs.append(Linear()(*pair, bias))
        return builder.finish(outputs)


def problems_of(graph: Graph) -> tuple[Search, list[Problem]]:
    """The tuner's problem of each output."""
    fused = fuse(graph)
    search = Search(place(fused), Packed(fused.constants), TACTICS)
    makers = {value: node for node in fused.nodes for value in node.outputs}
    return search, [search.problem(makers[value], {}) for value in fused.outputs]


def time_products(products: Sequence[Product], precision: str, target: Target) -> list[Timed]:
    """Raises BackendUnavailable without a GPU, BuildError where a tactic broke the GPU's context."""
    timer = device_timer(target)
    if timer is None:
        raise BackendUnavailable("products are timed on the GPU, and there is none here that torchsmith can use")
    search, problems = problems_of(graph_of(products, precision))
    with progress_of(f"timing products of {precision}") as progress:
        arch = int(target.arch.removeprefix("sm_"))
        Tuner(search, arch, 0, timer, TimingCache(target, None), progress)(list(dict.fromkeys(problems)))
    return [timed(product, precision, problem) for product, problem in zip(products, problems, strict=True)]


def timed(product: Product, precision: str, problem: Problem) -> Timed:
    """What was found out about a product."""
    fastest: dict[bool, tuple[float, str, float | None]] = {}
    others: dict[str, float | str] = {}
    for tactic in problem.tactics:
        name, known = str(tactic or "PyTorch"), problem.found.get(tactic_text(tactic))
        if known is None or known.microseconds is None:
            others[name] = "not timed" if known is None or known.reason is None else known.reason
            continue
        others[name] = round(known.microseconds, 2)
        kind = is_sparse(tactic)
        if kind not in fastest or known.microseconds < fastest[kind][0]:
            fastest[kind] = (known.microseconds, name, known.error)
    dense, sparse = fastest.get(False, (None, "", None)), fastest.get(True, (None, "", None))
    failed = [f"{name}: {why}" for name, why in others.items() if name.startswith("sparse") and isinstance(why, str)]
    against = problem.against_sparse or ("" if sparse[0] is not None else "; ".join(failed))
    return Timed(product, precision, dense[0], dense[1], sparse[0], sparse[1], sparse[2], against, others)


# ---- whole models ------------------------------------------------------------------------------------------------------------


def time_model(name: str, batch: int, precision: str) -> Whole:
    """A pruned model, built with sparse tactics and without, called in turns. What is wrong is not timed."""
    found = load(name)
    model: nn.Module = sparsify(found.module(batch)).cuda()
    given = Inputs(tuple(t.cuda() for t in found.inputs(batch, 0).args))
    with torch.no_grad():
        wanted = reference(model, given)
        half = copy.deepcopy(model).half()
        eager_error = worst_error([half(*(t.half() for t in given.args))], wanted)
    del half
    sparse = compiled(model, given, precision)
    nodes = nodes_of(sparse)
    products = sum(node.layers for node in nodes)
    layers = sum(node.layers for node in nodes if node.runs == "sparse")
    if layers:
        with tactics.only_dense():
            dense = compiled(model, given, precision)
    else:
        dense = sparse
    errors = [worst_error([side(*given.args)], wanted) for side in (dense, sparse)]
    limit = FACTOR * eager_error + ROUNDING
    note = "" if layers else "no sparse tactic won: both are the same engine"
    times: list[float | None] = [None, None]
    if precision == "f16" and max(errors) > limit:
        note = f"wrong: errors {errors[0]:.2e} and {errors[1]:.2e}, allowed {limit:.2e}"
    else:
        times = list(in_turns([dense, sparse] if layers else [dense], given))
        times = [times[0], times[-1]]
    return Whole(name, batch, precision, times[0], times[1], layers, products, errors[0], errors[1], eager_error, note, nodes)


def compiled(model: nn.Module, given: Inputs, precision: str) -> Any:
    options: dict[str, Any] = {"enabled_precisions": {torch.half}}
    if precision == "int8":
        options = {"enabled_precisions": {torch.half, torch.int8}, "calibrator": [given.args], "require_eight_bits": True}
    return torchsmith.compile(model, inputs=list(given.args), **options)


def nodes_of(module: Any) -> tuple[WholeNode, ...]:
    """The nodes with 2:4 weights of a compiled module's engines, as their plans tell of them."""
    alike = Counter[tuple[str, str, Sparsity]]()
    for engine in module.engines:
        plan: Plan = engine.runner.plan
        for step in plan.variants[0].steps:
            found = sparsity_of(step.about)
            if found is not None:
                written = step.outputs if isinstance(step, CallStep) else step.writes
                output = ", ".join(described(plan.values[name], {}) for name in written)
                alike[str(step.about.get("node", "")), output, found] += 1
    return tuple(
        WholeNode(op, output, count, "sparse" if s.sparse else "dense", s.sparse_us, s.dense_us, s.against)
        for (op, output, s), count in alike.items()
    )


def in_turns(sides: Sequence[Callable[..., Any]], given: Inputs) -> list[float]:
    """Milliseconds a call of each side, the median of bursts in turns."""
    samples: list[list[float]] = [[] for _ in sides]
    for side in sides:
        for _ in range(3):
            side(*given.args)
    torch.cuda.synchronize()
    for _ in range(ROUNDS):
        for side, own in zip(sides, samples, strict=True):
            own.append(burst(lambda side=side: side(*given.args)))  # type: ignore[misc]
    return [statistics.median(own) for own in samples]


def burst(call: Callable[[], Any]) -> float:
    """Milliseconds a call on the stream, of calls one after another."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    calls, started = 0, time.perf_counter()
    events[0].record()
    while calls < 3 or time.perf_counter() - started < BURST_S:
        call()
        calls += 1
    events[1].record()
    events[1].synchronize()
    return float(events[0].elapsed_time(events[1])) / calls


# ---- the command ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m torchsmith.bench.sparse", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--models", default=",".join(MODELS), help="timm names")
    made.add_argument("--batch", type=int, default=BATCH, help="of every model")
    made.add_argument("--precision", default=",".join(PRECISIONS), help="of products: f16, int8, or both")
    made.add_argument("--whole", default=",".join(PRECISIONS), help="precisions of whole models; empty for none")
    made.add_argument("--products", default="yes", choices=("yes", "no"), help="whether products are timed")
    made.add_argument("--out", type=Path, help="a file ending in .json; a table goes beside it, ending in .md")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, and what was found as it comes. Gives 2 where there is no GPU, or a side broke it."""
    given = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: sparse tensor cores are timed on a GPU, and PyTorch finds none here", file=sys.stderr)
        return 2
    table = Table(this_machine(gpu=True), datetime.date.today().isoformat(), given.batch)
    try:
        fill(table, names(given.models), names(given.precision) if given.products == "yes" else [], names(given.whole), given.out)
    except TorchsmithError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    finally:
        print(markdown(table), flush=True)
    return 0


def fill(table: Table, models: Sequence[str], precisions: Sequence[str], whole: Sequence[str], out: Path | None) -> None:
    """Everything that is asked for, written down as it goes."""
    from torchsmith.backends import target_of

    target, products = target_of("cuda"), list[Product]()
    for name in models:
        found, table.left_dense[name] = products_of(name, table.batch)
        products += found
    for precision in precisions:
        table.products += time_products(products, precision, target)
        write(table, out)
    for name in models:
        for precision in whole:
            table.models.append(time_model(name, table.batch, precision))
            print(json.dumps(dataclasses.asdict(table.models[-1])), flush=True)
            write(table, out)


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
