"""Products of int8 compile for every architecture, to int8 tensor-core instructions, with wide loads and without spilling."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.accuracy import judge, references
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.depthwise_gate import DepthwiseGateConfig
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ops.binary import Binary
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.layer_norm import LayerNorm
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize, quantize
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.unary import Unary

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")

COPIES = r"LDGSTS\.E\.BYPASS\S*\.128"
TENSOR_CORES = {80: r"IMMA\.\d+\.S8\.S8", 90: r"IGMMA\.\d+x\d+x32\.S8\.S8", 100: r"IMMA\.\d+\.S8\.S8|UTCIMMA"}


def residual(m: int, k: int, n: int) -> Graph:
    """Of int8: a linear layer, a residual of int8, relu, and int8 again."""
    with Builder() as builder:
        x, y = (builder.input(TensorType((m, size), torch.int8)) for size in (k, n))
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        scales = builder.constant(torch.linspace(0.01, 0.02, n))
        given = dequantize(x, 0.05, None, None, torch.float32), dequantize(builder.constant(weight), scales, None, 0, torch.float32)
        z = Linear()(*given, builder.constant(torch.ones(n)))
        z = Unary("relu")(Binary("add")(z, dequantize(y, 0.1, None, None, torch.float32)))
        return builder.finish([quantize(z, 0.2, None, None, -127, 127, torch.int8)])


def neighbours(size: int, channels: int) -> Graph:
    """A 3×3 convolution of int8 between two 1×1 ones."""
    with Builder() as builder:
        y = builder.input(TensorType((8, channels, size, size), torch.int8))
        for taps in (1, 3, 1):
            weight = builder.constant(torch.randint(-127, 128, (channels, channels, taps, taps), dtype=torch.int8))
            given = dequantize(y, 0.05, None, None, torch.float32), dequantize(weight, 0.01, None, None, torch.float32)
            z = Unary("relu")(Convolution((1, 1), ((taps // 2, taps // 2),) * 2, (1, 1), 1)(*given))
            y = quantize(z, 0.2, None, None, -127, 127, torch.int8)
        return builder.finish([y])


def gated(size: int, channels: int) -> Graph:
    """A depthwise convolution of int8, its gate, and a 1×1 convolution of what the gate scales; int8 again."""
    with Builder() as builder:
        x = builder.input(TensorType((64, channels, size, size), torch.int8))
        shapes = ((channels, 1, 3, 3), (8, channels, 1, 1), (channels, 8, 1, 1), (32, channels, 1, 1))
        layers = [builder.constant((torch.randn(*shape) * 0.1).half()) for shape in shapes]
        one = (1, 1), ((0, 0), (0, 0)), (1, 1), 1
        y = Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), channels)(dequantize(x, 0.05, 3, None, torch.float16), layers[0])
        y = dequantize(quantize(Unary("silu")(y), 0.02, None, None, -128, 127, torch.int8), 0.02, None, None, torch.float16)
        z = Convolution(*one)(Reduce("mean", (2, 3), True)(y), layers[1])
        z = Convolution(*one)(Unary("silu")(z), layers[2])
        z = Convolution(*one)(Binary("mul")(y, Unary("sigmoid")(z)), layers[3])
        return builder.finish([quantize(z, 0.2, None, None, -128, 127, torch.int8)])


def compiled(graph: Graph, kind: str, template: str, arch: int, config: Any = None, first: bool = False) -> Cubin:
    """The first node of that kind. config: None for the best guess. first: whether it has other kernels after this one."""
    graph = fuse(graph)
    node = next(n for n in graph.nodes if getattr(n.op, "kind", "") == kind)
    e = Emission(node, place(graph), Packed(graph.constants))
    chosen = tactics.template(template)
    chosen.emit(e, config or chosen.configs(e)[0])
    step, *others = [s for s in e.steps if isinstance(s, Launch)]
    assert first or not others
    made = compile_kernel(step.kernel, arch)
    assert isinstance(made, Cubin), made
    return made


def test_the_gate_allows_another_rounding_and_no_more() -> None:
    x = torch.linspace(-20, 20, 10007)
    with Builder() as builder:
        given = builder.input(type_of(x))
        graph = builder.finish([quantize(given, 0.3, None, None, -127, 127, torch.int8)])
    body = Graph((given, *graph.constants), graph.nodes, graph.outputs)
    wanted = references(body, [x, *graph.constants.values()])
    right = graph.nodes[0].op.reference(x, *graph.constants.values())
    assert isinstance(right, torch.Tensor)
    other = right.clone()
    other[5000] += 1
    assert judge([right], wanted).fault is None and judge([other], wanted).fault is None
    other[6000] += 2
    assert judge([other], wanted).fault is not None
    assert judge([right + (torch.arange(len(x)) % 50 == 0).to(torch.int8)], wanted).fault is not None


def sass(made: Cubin, folder: Path) -> str:
    """The machine code as text."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton comes without cuobjdump")
    (folder / "kernel.cubin").write_bytes(made.code)
    return subprocess.run([tool, "-sass", folder / "kernel.cubin"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_tensor_cores_multiply_int8(arch: int, tmp_path: Path) -> None:
    made = compiled(residual(4096, 768, 768), "gemm_int8", "gemm_int8", arch, GemmConfig(64, 128, 64, 4, 3))
    text = sass(made, tmp_path)
    assert re.search(TENSOR_CORES[arch], text)
    assert "STL" not in text and "LDL" not in text  # no register is spilled
    assert re.search(COPIES, text)  # 16 bytes at a time to shared memory


def test_convolutions_multiply_int8(tmp_path: Path) -> None:
    text = sass(compiled(neighbours(28, 128), "convolution_int8", "convolution", 90), tmp_path)
    assert re.search(TENSOR_CORES[90], text) and re.search(COPIES, text)
    assert "STL" not in text and "LDL" not in text


def test_few_rows(tmp_path: Path) -> None:
    """Blocks of 16 rows have no warp-group products."""
    text = sass(compiled(residual(8, 768, 768), "gemm_int8", "gemm_int8", 90), tmp_path)
    assert re.search(TENSOR_CORES[80], text)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_what_a_gate_scales_is_multiplied_in_halves(arch: int, tmp_path: Path) -> None:
    """Integers become halves in registers, on their way from copies of 16 bytes to tensor cores."""
    text = sass(compiled(gated(14, 128), "gemm", "gemm", arch, GemmConfig(64, 32, 64, 4, 3)), tmp_path)
    assert re.search({80: r"HMMA", 90: r"HGMMA", 100: r"HMMA|UTCHMMA"}[arch], text) and re.search(COPIES, text)
    assert "STL" not in text and "LDL" not in text


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_depthwise_convolutions_of_int8(arch: int, tmp_path: Path) -> None:
    config = DepthwiseGateConfig(64, 1, 4, 4, 4, 4, False, 1, 16, 2)
    text = sass(compiled(gated(14, 128), "depthwise_gate", "depthwise_gate", arch, config, first=True), tmp_path)
    assert re.search(r"LDG\.E\.64", text) and "STL" not in text and "LDL" not in text
    assert re.search(r"STG\.E\.64", text)  # eight channels of a pixel


def test_norms_write_both(tmp_path: Path) -> None:
    with Builder() as builder:
        x = builder.input(TensorType((4096, 768), torch.float16))
        y = LayerNorm(1, 1e-5)(x, *(builder.constant(torch.ones(768).half()) for _ in range(2)))
        graph = builder.finish([y, quantize(y, 0.02, None, None, -128, 127, torch.int8)])
    text = sass(compiled(graph, "norm", "norm", 90), tmp_path)
    assert len(re.findall(r"STG", text)) >= 2 and "STL" not in text
