from __future__ import annotations

import pytest
import torch

from torchsmith.dtypes import dtype
from torchsmith.errors import InvalidOption


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (torch.half, torch.float16),
        ("bf16", torch.bfloat16),
        ("torch.float32", torch.float32),
        (dtype.long, torch.int64),
        (dtype.int, torch.int32),
        ("bool", torch.bool),
        ("fp8", torch.float8_e4m3fn),
        (torch.float8_e4m3fn, torch.float8_e4m3fn),
    ],
)
def test_an_element_type_is_read_by_every_name(name: object, kind: torch.dtype) -> None:
    assert dtype.of(name).torch is kind


@pytest.mark.parametrize("name", ["float8", torch.complex64, 3, None, "torch"])
def test_what_is_no_element_type_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(InvalidOption, match=r"is no element type that torchsmith has; it takes one of .*f32"):
        dtype.of(name)


def test_the_long_names_are_the_short_ones() -> None:
    assert dtype.half is dtype.fp16 is dtype.float16 is dtype.f16
    assert dtype.float is dtype.f32 and dtype.double is dtype.f64 and dtype.long is dtype.i64
