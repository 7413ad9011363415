"""Accuracy budgets on a GPU: engines with int8, float16 and float32 side by side keep what was asked for."""

from __future__ import annotations

import pytest
import torch

import torchsmith
from tests.quantize.test_budget import Outlier, batches, error_over

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0.02, ["int8", "float16", "int8", "int8"]), (4e-4, None)],
    ids=["int8 where it does no harm", "float16 where it does no harm"],
)
def test_the_engines_keep_the_budget(limit: float, expected: list[str] | None) -> None:
    torch.manual_seed(0)
    model, data = Outlier().eval().cuda(), [x.cuda() for x in batches()]
    fast = torchsmith.compile(
        model, inputs=[data[0]], enabled_precisions={torch.float32, torch.float16, torch.int8}, calibrator=data,
        accuracy_budget=limit, min_block_size=1, disable_tf32=True,
    )  # fmt: skip
    accuracy = fast.report["accuracy"]
    assert accuracy["measured_on"] == "the engines" and accuracy["spent"] <= limit
    assert error_over(fast, model, data) == pytest.approx(accuracy["spent"], rel=1e-2)
    precisions = [layer["precision"] for layer in accuracy["layers"]]
    assert precisions == expected if expected else "float32" in precisions and "int8" not in precisions, precisions
