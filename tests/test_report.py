"""The record of one compilation."""

from __future__ import annotations

import json

import torch
from torch import nn

import torchsmith
from torchsmith.config import options
from torchsmith.target import Target, this_cpu


def test_a_report_is_plain_data_and_says_what_was_done() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    report = torchsmith.compile(model, inputs=[torch.randn(2, 4)], min_block_size=1, torch_executed_ops={"aten.relu"}).report
    assert json.loads(json.dumps(report)) == report
    assert report["torchsmith"] == torchsmith.__version__ and report["torch"] == torch.__version__
    assert Target.from_json(report["target"]) == this_cpu()
    assert report["options"].keys() == options().keys()
    assert report["options"]["torch_executed_ops"] == ["aten.relu"]
    assert (report["ops"], report["ops_in_engines"]) == (2, 1)
    (segment,) = report["segments"]
    assert segment["ops"] == 1 and segment["precision"] == "float32" and segment["engine_bytes"] > 0
    (refusal,) = report["refusals"]
    assert refusal["op"] == "aten.relu.default" and refusal["reason"] == "torch_executed_ops names it"
    assert 0 < sum(s["seconds"] for s in report["segments"]) <= report["seconds"]
