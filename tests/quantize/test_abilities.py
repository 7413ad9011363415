"""What engines compute in floats although it is quantized: told to users, and left alone by calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from torchsmith import backends
from torchsmith.backends.cuda.backend import CudaBackend
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.ir.graph import Graph, Node
from torchsmith.runtime.tensors import to_bytes
from torchsmith.target import this_cpu

C = 32
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 7), (4, 5)),
    "one dimension": (nn.Conv1d(C, C, 3), (2, C, 20)),
    "two dimensions": (nn.Conv2d(C, C, 3, dilation=2), (2, C, 12, 12)),
    "three dimensions": (nn.Conv3d(C, C, 3), (2, C, 5, 5, 5)),
    "few channels": (nn.Conv2d(8, C, 3), (2, 8, 12, 12)),
    "large groups": (nn.Conv2d(C, C, 3, groups=2), (2, C, 12, 12)),
    "small groups": (nn.Conv2d(C, C, 3, groups=8), (2, C, 12, 12)),
    "odd groups": (nn.Conv2d(30, 30, 3, groups=3), (2, 30, 12, 12)),
    "depthwise": (nn.Sequential(nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3, groups=C)), (2, C, 12, 12)),
    "several filters a channel": (nn.Sequential(nn.Conv2d(C, C, 1), nn.Conv2d(C, 2 * C, 3, groups=C)), (2, C, 12, 12)),
    "depthwise on floats": (nn.Sequential(nn.Conv1d(C, C, 1), nn.Conv1d(C, C, 3, groups=C)), (2, C, 20)),
    "transposed": (nn.ConvTranspose2d(C, C, 3, stride=2), (2, C, 12, 12)),
    "transposed and dilated": (nn.ConvTranspose2d(C, C, 3, stride=2, dilation=2), (2, C, 12, 12)),
}
CUDA_FLOATS = {
    "one dimension": "CUDA engines compute convolutions over 1 dimension in floats",
    "three dimensions": "CUDA engines compute convolutions over 3 dimensions in floats",
    "few channels": "CUDA engines compute convolutions of fewer than 16 channels in floats",
    "odd groups": "CUDA engines compute convolutions of fewer than 16 channels a group in floats",
    "depthwise on floats": "CUDA engines compute convolutions over 1 dimension in floats",
    "transposed": "CUDA engines compute transposed convolutions in floats",
    "transposed and dilated": "CUDA engines compute transposed convolutions in floats",
}
OPENVINO_FLOATS = {
    "transposed and dilated": "OpenVINO's int8 kernel of transposed convolutions with a stride and a dilation is wrong by a tenth"
}


class Trained(nn.Module):
    """A layer of fake-quantize pairs. zero_points: of its input and its weight; the latter is unsigned from 64 on."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, op: Any, zero_points: tuple[int, int]) -> None:
        super().__init__()
        self.op, self.input_zero, self.weight_zero = op, *zero_points
        self.weight = nn.Parameter(torch.randn(C, C) if op is F.linear else torch.randn(C, C, 3, 3))
        self.register_buffer("scale", torch.full((C,), 0.03))
        self.register_buffer("zero_point", torch.full((C,), self.weight_zero, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        low, high = (0, 255) if self.weight_zero >= 64 else (-128, 127)
        axis = 1 if self.op is F.conv_transpose2d else 0
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.scale, self.zero_point, axis, low, high)
        return self.op(torch.fake_quantize_per_tensor_affine(x, 0.03, self.input_zero, -128, 127), weight)  # type: ignore[no-any-return]


OPS = {"linear": F.linear, "conv2d": F.conv2d, "conv_transpose2d": F.conv_transpose2d}
ZERO_POINTS = [(0, 0), (10, 0), (0, 3), (10, 128), (10, 120)]


def nodes_of(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        body = getattr(node.op, "body", None)
        yield from nodes_of(body) if body else (node,)


def on_cuda(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor, **options: Any) -> tuple[list[str], list[str]]:
    """Reasons for floats, layer by layer, empty for int8, and the ops that compute in int8 in fact."""
    graphs: list[Graph] = []

    def keep(self: CudaBackend, graph: Graph, target: Any, config: Any) -> bytes:
        graphs.append(graph)
        return b"an engine"

    monkeypatch.setattr(CudaBackend, "build", keep)
    given = {"enabled_precisions": {torch.half, torch.int8}, "min_block_size": 1, "backend": "cuda", "target": "sm_90", **options}
    fast = torchsmith.compile(model.eval(), inputs=[x], **given)
    (graph,) = graphs
    fused = fuse(graph)
    in_int8 = [type(n.op).__name__ for n in nodes_of(fused) if type(n.op).__name__.startswith("Integer")]
    # those have no products of eight bits: their kernels read and write them
    in_int8 += [node.op.kind for node in fused.nodes if getattr(node.op, "kind", "") == "depthwise" and reads_int8(node)]
    return [layer["reason"] for layer in torchsmith.explain(fast).layers], in_int8


def reads_int8(node: Node) -> bool:
    return node.inputs[0].type.dtype == torch.int8


def on_openvino(model: nn.Module, x: Tensor, **options: Any) -> tuple[list[str], list[str]]:
    if "avx2" not in this_cpu().features:
        pytest.skip("OpenVINO has int8 kernels for x86 with AVX2 and later")
    given = {"enabled_precisions": {torch.float32, torch.int8}, "min_block_size": 1, "backend": "openvino", **options}
    fast = torchsmith.compile(model.eval(), inputs=[x], **given)
    (call,) = fast.plan.engine_calls  # type: ignore[union-attr]
    run: Any = backends.get("openvino").load(to_bytes(fast.program.constants[call.constant]), this_cpu())  # type: ignore[union-attr]
    executed = [kind for kind, precision in run.executed() if precision in ("u8", "i8")]
    return [layer["reason"] for layer in torchsmith.explain(fast).layers], executed


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:calibration finds no layer")
def test_cuda_engines_compute_what_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(*shape)
    reasons, in_int8 = on_cuda(monkeypatch, layer, x, calibrator=[x])
    assert set(reasons) == {CUDA_FLOATS.get(name, "")} and len(in_int8) == reasons.count("")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:calibration finds no layer")
def test_openvino_computes_what_is_told(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(*shape)
    reasons, executed = on_openvino(layer, x, calibrator=[x])
    assert set(reasons) == {OPENVINO_FLOATS.get(name, "")} and len(executed) == reasons.count("")


@pytest.mark.parametrize("zero_points", ZERO_POINTS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_zero_points_on_cuda(op: str, zero_points: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, C) if op == "linear" else torch.randn(2, C, 12, 12)
    (reason,), in_int8 = on_cuda(monkeypatch, Trained(OPS[op], zero_points), x)
    assert bool(reason) == (zero_points[1] not in (0, 128) or op == "conv_transpose2d") and len(in_int8) == (not reason)


@pytest.mark.parametrize("zero_points", ZERO_POINTS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_zero_points_on_openvino(op: str, zero_points: tuple[int, int]) -> None:
    x = torch.randn(2, C) if op == "linear" else torch.randn(2, C, 12, 12)
    (reason,), executed = on_openvino(Trained(OPS[op], zero_points), x)
    floats = {"conv2d": [(0, 3), (10, 120)], "conv_transpose2d": ZERO_POINTS[1:]}
    assert bool(reason) == (zero_points in floats.get(op, [])) and len(executed) == (not reason)


def test_a_trained_layer_in_floats_is_told_where_nobody_asked_for_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"enabled_precisions": {torch.half}}
    reasons, _ = on_cuda(monkeypatch, Trained(F.linear, (0, 3)), torch.randn(2, C), **given)
    assert reasons == ["CUDA engines compute layers whose weights have zero points in floats"]
