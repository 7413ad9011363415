"""What is compared on a GPU: one builder per side, for a module and inputs that are on the device already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from torchsmith.bench.models import Inputs
from torchsmith.bench.sides import (
    BASELINE,
    EIGHT_BITS,
    FLOAT8_SIDE,
    INT8_SIDE,
    PRECISIONS,
    SUBJECT,
    Builder,
    Built,
    binder,
    cast,
    torchscript,
)

BESIDE_EIGHT_BITS = "f16"  # what layers that are neither int8 nor float8 compute in
WARM_UP_CALLS = 3  # before a graph is captured: libraries choose their algorithms and allocate


def half_precision(module: nn.Module, inputs: Inputs, precision: str) -> tuple[nn.Module, Inputs]:
    """The module and inputs as a peer likes them best: in the precision's dtype; convolutional networks channels-last."""
    module, given = module.to(PRECISIONS[precision]), cast(inputs, PRECISIONS[precision])
    if not convolutional(module):
        return module, given
    return module.to(memory_format=torch.channels_last), channels_last(given)


def convolutional(module: nn.Module) -> bool:
    """Whether most of the work is two-dimensional convolutions; a vision transformer has only the one that cuts patches."""
    return sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1


def channels_last(inputs: Inputs) -> Inputs:
    def one(leaf: Any) -> Any:
        return leaf.to(memory_format=torch.channels_last) if isinstance(leaf, Tensor) and leaf.dim() == 4 else leaf

    return Inputs(*tree_map(one, (inputs.args, inputs.kwargs)))


def eager(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    if precision == "f32":
        return Built(binder(module), "as it is")
    module, _ = half_precision(module, inputs, precision)
    return Built(binder(module, partial(prepared, module, precision)), "channels-last" if convolutional(module) else "")


def prepared(module: nn.Module, precision: str, inputs: Inputs) -> Inputs:
    given = cast(inputs, PRECISIONS[precision])
    return channels_last(given) if convolutional(module) else given


def script(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    module, given = half_precision(module, inputs, precision)
    built = torchscript(module, given, precision)

    def bind(inputs: Inputs) -> Callable[[], Any]:
        return built.bind(prepared(module, precision, inputs))

    return Built(bind, built.note + (", channels-last" if convolutional(module) else ""))


def cuda_graph(module: nn.Module, inputs: Inputs, precision: str) -> Built:
    """Eager, captured once. What is timed is the replay alone: no copy of an input, none of an output."""
    module, held = half_precision(module, inputs, precision)
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP_CALLS):
            module(*held.args, **held.kwargs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(*held.args, **held.kwargs)

    kept = (outputs, module)  # the graph reads the module's weights, but does not keep them

    def call() -> Any:
        graph.replay()
        return kept[0]

    def bind(given: Inputs) -> Callable[[], Any]:
        for mine, new in zip(held.tensors(), given.tensors(), strict=True):
            mine.copy_(new)
        return call

    return Built(bind, "torch.cuda.graph around eager" + (", channels-last" if convolutional(module) else ""))


def inductor(module: nn.Module, inputs: Inputs, precision: str, mode: str = "reduce-overhead") -> Built:
    module, given = half_precision(module, inputs, precision)
    compiled = torch.compile(module, mode=mode, fullgraph=True, dynamic=False)
    for _ in range(WARM_UP_CALLS):  # it compiles at the first call and captures at the second
        tree_leaves(compiled(*given.args, **given.kwargs))
    note = f"torch.compile, mode={mode!r}, fullgraph=True, dynamic=False" + (", channels-last" if convolutional(module) else "")
    return Built(binder(compiled, partial(prepared, module, precision)), note)


def torchsmith(module: nn.Module, inputs: Inputs, precision: str, options: Mapping[str, Any] | None = None) -> Built:
    """Called as a user would: inputs as the model takes them, and the copies in and out are part of what is timed."""
    import torchsmith

    fast = torchsmith.compile(
        module,
        inputs=list(inputs.args),
        kwarg_inputs=inputs.kwargs or None,
        **{"enabled_precisions": {PRECISIONS[precision]}, **(options or {})},
    )
    contest = fast.report.get("contest")
    note = repr(fast) if contest is None or contest["kept_eight_bits"] else f"{fast!r}, in floats, which were faster: {contest}"
    return Built(binder(fast), note)


def calibrated(
    module: nn.Module,
    inputs: Inputs,
    precision: str,
    options: Mapping[str, Any] | None = None,
    data: Sequence[Inputs] = (),
    dtype: torch.dtype = torch.int8,
) -> Built:
    """Calibrated with `data`; with the inputs themselves where there is none. Called as `torchsmith` is. dtype: of eight bits."""
    calls = data or (inputs,)
    calibrator = [(*given.args, given.kwargs) if given.kwargs else given.args for given in calls]
    wanted = {"enabled_precisions": {PRECISIONS[BESIDE_EIGHT_BITS], dtype}, "calibrator": calibrator}
    built = torchsmith(module, inputs, BESIDE_EIGHT_BITS, {**(options or {}), **wanted})
    return Built(built.bind, f"{built.note}; calibrated with {sum(given.items for given in calls)} items")


# in the order in which they are built: quick ones first, so that a killed run has something to show
GPU_BUILDERS: Mapping[str, Builder] = {
    BASELINE: eager,
    "torchscript": script,
    "cudagraph": cuda_graph,
    SUBJECT: torchsmith,
    INT8_SIDE: calibrated,
    FLOAT8_SIDE: partial(calibrated, dtype=torch.float8_e4m3fn),
    "inductor": inductor,
    "max-autotune": partial(inductor, mode="max-autotune"),
}
GPU_SIDES = tuple(name for name in GPU_BUILDERS if name not in ("max-autotune", *EIGHT_BITS.values()))
