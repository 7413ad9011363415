"""Library ops: what they refuse, how they are written into a plan, that they give the strides that plans have."""

from __future__ import annotations

import pytest
import torch

from torchsmith.backends.cuda.library import LibraryConvolution, LibraryLinear, cudnn_benchmark
from torchsmith.errors import Unsupported
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.text import attribute_in, attribute_out
from torchsmith.ir.types import TensorType, type_of

CONVOLUTION = LibraryConvolution((2, 1), (1, 0), (1, 1), 1, "relu", True)


@pytest.mark.parametrize("op", [CONVOLUTION, LibraryLinear("gelu", True)])
def test_they_are_written_as_data(op: LibraryConvolution | LibraryLinear) -> None:
    written = {name: attribute_out(value) for name, value in op.attributes().items()}
    assert REGISTRY[type(op).__name__](**{name: attribute_in(value) for name, value in written.items()}) == op


def test_a_convolution_gives_what_it_promises() -> None:
    x, weight, bias = torch.randn(2, 8, 9, 7), torch.randn(16, 8, 3, 1), torch.randn(16)
    residual = torch.randn(2, 16, 5, 7)
    y = CONVOLUTION.reference(x, weight, bias, residual)
    torch.testing.assert_close(y, torch.relu(torch.conv2d(x, weight, bias, (2, 1), (1, 0)) + residual))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert type_of(y).matches(CONVOLUTION.infer(*map(type_of, (x, weight, bias, residual))))


@pytest.mark.parametrize(
    ("activation", "apply"),
    [("none", lambda y: y), ("relu", torch.relu), ("gelu", lambda y: torch.nn.functional.gelu(y, approximate="tanh"))],
)
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24)])
def test_a_product_gives_what_it_promises(shape: tuple[int, ...], activation: str, apply: object) -> None:
    op, x, weight, bias = LibraryLinear(activation), torch.randn(shape), torch.randn(8, 24), torch.randn(8)
    y = op.reference(x, weight, bias)
    torch.testing.assert_close(y, apply(torch.nn.functional.linear(x, weight, bias)))  # type: ignore[operator]
    assert y.is_contiguous() and type_of(y).matches(op.infer(*map(type_of, (x, weight, bias))))


def test_a_product_over_channels_is_a_pointwise_convolution() -> None:
    op, x, weight = LibraryLinear("none", True), torch.randn(2, 24, 5, 3), torch.randn(8, 24)
    y = op.reference(x, weight)
    torch.testing.assert_close(y, torch.conv2d(x, weight[:, :, None, None]))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert type_of(y).matches(op.infer(type_of(x), type_of(weight)))


def half(*shape: int) -> TensorType:
    return TensorType(shape, torch.float16)


def test_what_the_libraries_cannot_do_is_refused() -> None:
    plain = LibraryConvolution((1, 1), (0, 0), (1, 1), 1)
    with pytest.raises(Unsupported, match=r"adds a residual of .* before relu"):
        plain.infer(half(1, 8, 5, 5), half(8, 8, 1, 1), half(8), half(1, 8, 5, 5))
    with pytest.raises(Unsupported, match=r"it takes \(N, C, H, W\), none or relu"):
        LibraryConvolution((1, 1), (0, 0), (1, 1), 1, "silu").infer(half(1, 8, 5, 5), half(8, 8, 1, 1))
    with pytest.raises(Unsupported, match="with activation relu and bias None"):
        LibraryLinear("relu").infer(half(3, 8), half(4, 8))
    with pytest.raises(Unsupported, match=r"it takes \(N, K, \.\.\.\) and \(N, K\)"):
        LibraryLinear("none", True).infer(half(3, 8, 2), half(4, 7))


def test_the_switch_is_put_back() -> None:
    before = torch.backends.cudnn.benchmark
    with cudnn_benchmark(not before):
        assert torch.backends.cudnn.benchmark is not before
    assert torch.backends.cudnn.benchmark is before
