"""How ATen reaches the ops."""

from __future__ import annotations

import pytest
import torch

from torchsmith.ops.registry import converter, load_all

aten = torch.ops.aten


def test_every_op_file_is_loaded() -> None:
    converters = load_all()
    assert {aten.add.Tensor, aten.relu.default, aten.conv2d.default, aten.view.default} <= set(converters)
    assert all(function.__module__.startswith("torchsmith.ops.") for function in converters.values())


def test_an_overload_has_one_converter() -> None:
    before = dict(load_all())
    with pytest.raises(AssertionError, match=r"aten\.add\.Tensor has two converters"):
        converter(aten.add.Tensor)(lambda a, b: a)
    assert load_all() == before
