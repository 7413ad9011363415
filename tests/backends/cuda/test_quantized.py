"""Products of int8 compile for every architecture, to int8 tensor-core instructions, with wide loads and without spilling."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

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
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ops.binary import Binary
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize, quantize
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


def compiled(graph: Graph, kind: str, template: str, arch: int, config: GemmConfig | None = None) -> Cubin:
    """The first node of that kind. config: None for the best guess."""
    graph = fuse(graph)
    node = next(n for n in graph.nodes if getattr(n.op, "kind", "") == kind)
    e = Emission(node, place(graph), Packed(graph.constants))
    chosen = tactics.template(template)
    chosen.emit(e, config or chosen.configs(e)[0])
    (step,) = [s for s in e.steps if isinstance(s, Launch)]
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
