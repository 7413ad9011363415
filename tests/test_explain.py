"""What explain shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchsmith
from torchsmith.errors import InvalidInput


@pytest.fixture
def explanation() -> torchsmith.explain.Explanation:  # type: ignore[name-defined]
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU()).eval()
    return torchsmith.explain(
        torchsmith.compile(model, inputs=[torch.randn(2, 4)], min_block_size=1, torch_executed_ops={"aten.relu"})
    )


def test_the_summary_counts(explanation) -> None:  # type: ignore[no-untyped-def]
    assert explanation.summary == "2 engines (openvino) with 2 of 4 ops; 2 in PyTorch"


def test_the_tables_have_shapes_reasons_and_source_lines(explanation) -> None:  # type: ignore[no-untyped-def]
    text = str(explanation)
    assert "f32[2, 4]" in text and "f32[2, 3]" in text  # brackets are not taken for markup
    assert "aten.relu.default" in text and "torch_executed_ops names it" in text
    assert repr(explanation) == text


def test_equal_refusals_share_a_row() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.special.i0(x)
            return x

    text = str(torchsmith.explain(torchsmith.compile(Twice().eval(), inputs=[torch.rand(3)])))
    assert "(×3)" in text and "no converter" in text
    assert text.startswith("no engine: all 3 ops run in PyTorch")


def test_other_modules_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"what torchsmith\.compile\(\) or load\(\) returned; it got Linear"):
        torchsmith.explain(nn.Linear(2, 2))  # type: ignore[arg-type]
