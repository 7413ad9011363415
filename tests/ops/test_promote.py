"""PyTorch's type promotion, as casts."""

from __future__ import annotations

import pytest
import torch

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast, promote, scalar, widened


@pytest.mark.parametrize("a", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("b", [torch.float32, torch.float16, torch.int32, torch.bool, 2, 2.5, True], ids=str)
def test_the_dtype_is_pytorchs(a: torch.dtype, b: torch.dtype | float) -> None:
    other = torch.zeros(3, dtype=b) if isinstance(b, torch.dtype) else b
    with Builder() as graph:
        x = graph.input(TensorType((3,), a))
        y = graph.input(TensorType((3,), b)) if isinstance(b, torch.dtype) else b
        assert {v.type.dtype for v in promote(x, y)} == {torch.result_type(torch.zeros(3, dtype=a), other)}


def test_a_tensor_without_dimensions_gives_way() -> None:
    with Builder() as graph:
        x, y = graph.input(TensorType((3,), torch.bfloat16)), graph.input(TensorType((), torch.float32))
        assert [v.type.dtype for v in promote(x, y)] == [torch.bfloat16] * 2


def test_sizes_are_integers() -> None:
    with Builder() as graph:
        x, i = graph.input(TensorType((3,), torch.float32)), graph.input(TensorType((3,), torch.int32))
        assert [v.type.dtype for v in promote(x, symbol("n"))] == [torch.float32] * 2
        assert [v.type.dtype for v in promote(i, symbol("n"))] == [torch.int32] * 2


def test_no_cast_where_none_is_needed() -> None:
    with Builder() as graph:
        x, h = graph.input(TensorType((3,), torch.float32)), graph.input(TensorType((3,), torch.bfloat16))
        assert cast(x, torch.float32) is x and widened(x) is x
        assert widened(h).type.dtype == torch.float32


def test_numbers_wrap_as_in_pytorch() -> None:
    with Builder() as graph:
        assert graph.constants[scalar(300, torch.uint8)].item() == 44
        assert graph.constants[scalar(0.1, torch.float64)].item() == 0.1


def test_complex_numbers_are_refused() -> None:
    with Builder(), pytest.raises(Unsupported, match=r"complex number 1j; engines compute in real numbers"):
        scalar(1j, torch.float32)  # type: ignore[arg-type]
