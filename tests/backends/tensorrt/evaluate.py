"""A TensorRT network computed layer by layer in PyTorch, on the CPU, by what TensorRT's documentation says of its layers.

No GPU is asked for: the network definition alone is read. It shows that a network says what its graph means; how TensorRT's
kernels round is not looked at. Where the documentation leaves a choice open, the modules with the layers say which was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.backends.tensorrt import images, shapes  # noqa: F401 - their layers are added
from tests.backends.tensorrt.layers import DTYPES, LAYERS, READS, Layer
from torchsmith.backends.tensorrt.library import trt

# What TensorRT's Python samples call downcasting: a layer read from a network knows no more than what all layers have.
CLASSES = {
    "ACTIVATION": "IActivationLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "ATTENTION_OUTPUT": "IAttentionOutputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONSTANT": "IConstantLayer",
    "CONVOLUTION": "IConvolutionLayer",
    "CUMULATIVE": "ICumulativeLayer",
    "DECONVOLUTION": "IDeconvolutionLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "FILL": "IFillLayer",
    "GATHER": "IGatherLayer",
    "GRID_SAMPLE": "IGridSampleLayer",
    "IDENTITY": "IIdentityLayer",
    "ITERATOR": "IIteratorLayer",
    "LOOP_OUTPUT": "ILoopOutputLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "NORMALIZATION": "INormalizationLayer",
    "ONE_HOT": "IOneHotLayer",
    "PADDING": "IPaddingLayer",
    "PARAMETRIC_RELU": "IParametricReLULayer",
    "POOLING": "IPoolingLayer",
    "QUANTIZE": "IQuantizeLayer",
    "RECURRENCE": "IRecurrenceLayer",
    "REDUCE": "IReduceLayer",
    "RESIZE": "IResizeLayer",
    "SCATTER": "IScatterLayer",
    "SELECT": "ISelectLayer",
    "SHAPE": "IShapeLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "SQUEEZE": "ISqueezeLayer",
    "TOPK": "ITopKLayer",
    "TRIP_LIMIT": "ITripLimitLayer",
    "UNARY": "IUnaryLayer",
    "UNSQUEEZE": "IUnsqueezeLayer",
}
IN_LOOPS = ("ITERATOR", "RECURRENCE", "TRIP_LIMIT", "LOOP_OUTPUT")


def evaluate(network: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's outputs by name for `inputs` by name, in the types that the network says.

    16-bit tensors are computed in float32 and rounded after every layer. Keep what the network's weights lie in (`Emission`)
    until this is done: they are read where the network points. Raises NotImplementedError with the type of a layer that it does
    not know, and AssertionError where a layer's inputs or results are not what TensorRT says they are.
    """
    known: dict[str, Tensor] = {}
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        known[tensor.name] = _checked(inputs[tensor.name], tensor)
    assert set(inputs) == set(known), f"inputs {sorted(inputs)}, the network has {sorted(known)}"
    layers = in_order([described(network.get_layer(number)) for number in range(network.num_layers)], known)
    loops: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.kind in IN_LOOPS:
            loops.setdefault(layer.raw.loop.name, []).append(layer)
    inside = {layer.outputs[0].name: name for name, parts in loops.items() for layer in parts if layer.kind in IN_LOOPS[:2]}
    bodies: dict[str, list[Layer]] = {name: [] for name in loops}
    for layer in layers:
        if layer.kind in IN_LOOPS:
            continue
        names = {inside[t.name] for t in layer.inputs if t is not None and t.name in inside}
        assert len(names) <= 1, f"{layer.raw.name} lies in several loops"
        for name in names:
            inside.update({t.name: name for t in layer.outputs})
            bodies[name].append(layer)
    done: set[str] = set()
    for layer in layers:
        if layer.kind == "LOOP_OUTPUT" and layer.raw.loop.name not in done:
            done.add(layer.raw.loop.name)
            run_loop(loops[layer.raw.loop.name], bodies[layer.raw.loop.name], known)
        elif layer.kind not in IN_LOOPS and layer.outputs[0].name not in inside:
            run(layer, known)
    return {t.name: known[t.name] for t in map(network.get_output, range(network.num_outputs))}


def described(raw: Any) -> Layer:
    """The layer as what it is. Raises NotImplementedError."""
    # of the base class, as layers of some types call another thing their type; a layer read before has its own class already
    kind = trt().ILayer.type.fget(raw).name
    if kind not in CLASSES:
        raise NotImplementedError(f"the evaluation knows no layer of the type {kind} ({raw.name})")
    raw.__class__ = getattr(trt(), CLASSES[kind])
    inputs = [raw.get_input(number) for number in range(raw.num_inputs)]
    return Layer(kind, raw, inputs, [raw.get_output(number) for number in range(raw.num_outputs)])


def in_order(layers: list[Layer], known: Iterable[str]) -> list[Layer]:
    """Every layer after those that it reads, but for what a loop carries around; otherwise as they were added."""
    read_by_loop: dict[str, list[Any]] = {}  # which is run as a whole where its first output stands
    for layer in layers:
        if layer.kind in IN_LOOPS:
            read_by_loop.setdefault(layer.raw.loop.name, []).extend(layer.inputs)
    seen, waiting, sorted_ = set(known), list(layers), list[Layer]()
    while waiting:
        later = []
        for layer in waiting:
            reads = layer.inputs[:1] if layer.kind == "RECURRENCE" else layer.inputs
            reads = read_by_loop[layer.raw.loop.name] if layer.kind == "LOOP_OUTPUT" else reads
            if all(t is None or t.name in seen for t in reads):
                seen.update(t.name for t in layer.outputs)
                sorted_.append(layer)
            else:
                later.append(layer)
        assert len(later) < len(waiting), f"nothing gives what {later[0].raw.name} reads"
        waiting = later
    return sorted_


def run(layer: Layer, known: dict[str, Tensor]) -> None:
    """Add a layer's outputs to what is known."""
    given = [None if t is None else known[t.name] for t in layer.inputs]
    if layer.kind not in READS:
        given = [None if t is None else _wide(t) for t in given]
    found = LAYERS[layer.kind](layer.raw, *given)
    results = found if isinstance(found, tuple) else (found,)
    for tensor, result in zip(layer.outputs, results, strict=True):
        dtype = DTYPES[tensor.dtype.name]
        # a result of another kind would be a cast that the network does not say
        assert result.dtype == dtype or _wide(torch.empty(0, dtype=dtype)).dtype == result.dtype, (
            f"{layer.raw.name}: TensorRT says {dtype}, the evaluation gives {result.dtype}"
        )
        known[tensor.name] = _checked(result.to(dtype), tensor, layer.raw.name)


def run_loop(parts: list[Layer], body: list[Layer], known: dict[str, Tensor]) -> None:
    """The whole loop; its outputs are added to what is known. A trip limit by a condition is not known."""
    limits, carried, iterators, outputs = (
        [layer for layer in parts if layer.kind == kind] for kind in ("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")
    )
    if [layer.raw.kind for layer in limits] != [trt().TripLimit.COUNT]:
        raise NotImplementedError("the evaluation knows no loops but those with a count of trips")
    trips = int(known[limits[0].inputs[0].name])
    collected: list[list[Tensor]] = [[] for _ in outputs]
    state = {layer.outputs[0].name: known[layer.inputs[0].name] for layer in carried}
    for trip in range(trips):
        known.update(state)
        for layer in iterators:
            at = trips - 1 - trip if layer.raw.reverse else trip
            known[layer.outputs[0].name] = known[layer.inputs[0].name].select(layer.raw.axis, at)
        for layer in body:
            run(layer, known)
        for values, layer in zip(collected, outputs, strict=True):
            values.append(known[layer.inputs[0].name])
        state = {layer.outputs[0].name: known[layer.inputs[1].name] for layer in carried}
    for values, layer in zip(collected, outputs, strict=True):
        result, kind, where = state.get(layer.inputs[0].name), layer.raw.kind, layer.raw.name
        if kind == trt().LoopOutput.LAST_VALUE:
            assert result is not None, f"{where}: the last value of what the loop does not carry around"
        else:
            length = int(known[layer.inputs[1].name])
            assert length == trips, f"{where}: {trips} trips, whose results are to fill {length}"
            result = torch.stack(values[::-1] if kind == trt().LoopOutput.REVERSE else values, layer.raw.axis)
        known[layer.outputs[0].name] = _checked(result, layer.outputs[0], where)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _checked(result: Tensor, tensor: Any, where: str = "an input") -> Tensor:
    """The result, if it is what TensorRT says that it is."""
    said = tuple(tensor.shape)
    assert result.dtype == DTYPES[tensor.dtype.name], f"{where}: {tensor.name} is {tensor.dtype}, not {result.dtype}"
    assert result.dim() == len(said) and all(n in (-1, have) for n, have in zip(said, result.shape, strict=True)), (
        f"{where}: {tensor.name} is {said} for TensorRT, {tuple(result.shape)} for the evaluation"
    )
    return result
