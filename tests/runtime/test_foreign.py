"""Modules built for a device that is not here: saved, looked at, and refused when called, with a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

import torchsmith
from tests.package.packages import ROOT  # noqa: F401 - packages registers the toy backend
from torchsmith.cli.inspect import contents_of
from torchsmith.errors import EngineMismatch, InvalidInput, InvalidOption, TorchsmithError
from torchsmith.package.archive import read_header
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.extract import plan_of
from torchsmith.runtime.places import Place, moved, place_of
from torchsmith.runtime.plan import Call, TensorInput
from torchsmith.target import Target

pytest.importorskip("triton")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SENTENCE = r"built for cuda sm_90, and this machine has no such device; save it with torchsmith.save, and load it on a machine"


class Net(nn.Module):
    """An engine, and around it ops that stay in PyTorch: some make tensors, one keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count.add_(1)
        noise = torch.full((8,), 0.5) + torch.arange(8, device=x.device)
        return torch.relu(self.first(x)) * 2 + torch.erfinv(noise / 10), self.count * 2


def foreign(**options: Any) -> CompiledModule:
    given = {"target": "sm_90", "min_block_size": 1, "torch_executed_ops": {"aten.erfinv", "aten.full", "aten.arange"}, **options}
    fast = torchsmith.compile(Net().eval(), inputs=[torchsmith.Input((2, 8))], **given)
    assert isinstance(fast, CompiledModule)
    return fast


@no_gpu
def test_it_is_built_saved_and_looked_at(tmp_path: Path) -> None:
    fast = foreign(enabled_precisions={torch.half})
    assert torchsmith.explain(fast).segments[0]["backend"] == "cuda" and fast.report["target"]["arch"] == "sm_90"
    assert "built for cuda sm_90" in repr(fast)
    torchsmith.save(fast, tmp_path / "m.pt2")
    contents = contents_of(tmp_path / "m.pt2")
    assert contents.target["arch"] == "sm_90" and contents.inputs == ["x: float32[2, 8] on cuda"]
    assert "built for cuda sm_90, and this machine has no such device" in contents.why_not
    header = read_header(str(tmp_path / "m.pt2"))
    assert '"cpu"' not in json.dumps(header["plan"]), "all that PyTorch makes is made on the GPU"
    assert {how["device"] for name, how in header["tensors"].items() if not name.startswith("engine")} == {"cuda"}
    assert {how["device"] for name, how in header["tensors"].items() if name.startswith("engine")} == {"cpu"}


@no_gpu
def test_calling_it_is_refused_before_and_after_loading(tmp_path: Path) -> None:
    fast = foreign()
    torchsmith.save(fast, tmp_path / "m.pt2")
    again = torchsmith.load(tmp_path / "m.pt2")
    assert isinstance(again, CompiledModule) and again.plan == fast.plan and again.report == fast.report
    torchsmith.save(again, tmp_path / "again.pt2")
    third = torchsmith.load(tmp_path / "again.pt2")
    for module in (fast, again, third, copy.deepcopy(again)):
        for args, kwargs in ((torch.ones(2, 8),), {}), ((), {"x": torch.ones(2, 8)}):
            with pytest.raises(EngineMismatch, match=SENTENCE):
                module(*args, **kwargs)
    with pytest.raises(InvalidInput, match="a cuda engine runs on a GPU, and its inputs are on the CPU"):
        again.program.module()(torch.ones(2, 8))
    assert fast.eval() is fast and fast.float() is fast


def test_a_plan_moves_whole() -> None:
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = x @ x
            return y + torch.ones(3, device="cpu") + torch.zeros_like(x).to("cpu")

    plan = moved(plan_of(export(Made(), (torch.ones(3, 3),))), CUDA)
    assert [i.device for i in plan.inputs if isinstance(i, TensorInput)] == [CUDA]
    seen: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for item in value:
                look(item)
        elif isinstance(value, (torch.device, str)):
            seen.append(value)

    for block in plan.blocks():
        for step in block.steps:
            assert isinstance(step, Call)
            look([step.args, list(step.kwargs.values())])
    assert CUDA in seen and CPU not in seen and "cpu" not in seen


def test_what_names_no_device_is_made_where_the_rest_is() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ops.aten.arange.default(3)

    plan = moved(plan_of(export(Bare(), (torch.ones(3),))), CUDA)
    (made,) = [step for step in plan.body.steps if isinstance(step, Call) and "arange" in str(step.target)]
    assert made.kwargs["device"] == CUDA


def test_places() -> None:
    here, sm_90 = Target.parse("cpu"), Target.parse("sm_90")
    assert place_of(here, CPU, None) == Place() == place_of(here, CPU, CPU)
    if not torch.cuda.is_available():
        assert place_of(sm_90, CPU, None).device == CUDA
        assert place_of(sm_90, torch.device("cuda:0"), None).device is None
        assert place_of(sm_90, CPU, torch.device("cuda:1")).device == torch.device("cuda:1")
    with pytest.raises(InvalidOption, match=r"device='cpu' and target='sm_90' do not fit each other"):
        place_of(sm_90, CPU, CPU)


@no_gpu
def test_a_module_in_parts_does_not_move() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if bool(x.sum() > 0) else x

    script = torch.jit.script(Branching().eval())
    with pytest.raises(
        InvalidOption, match=r"is compiled in parts, because .*; TorchScript runs the rest where the model is, so move"
    ):
        torchsmith.compile(script, inputs=[torch.ones(2, 4)], target="sm_90", min_block_size=1)


def test_an_engine_for_another_gpu_of_the_family() -> None:
    def sm(number: int) -> Target:
        return Target("cuda", f"sm_{number}")

    assert sm(80).runs_on(sm(86)) and sm(80).runs_on(sm(80)) and sm(90).runs_on(sm(90))
    assert not any((sm(86).runs_on(sm(80)), sm(80).runs_on(sm(90)), sm(100).runs_on(sm(103)), sm(90).runs_on(Target.parse("cpu"))))


@no_gpu
def test_it_does_not_move_later() -> None:
    with pytest.raises(TorchsmithError, match="precision of a compiled module is fixed"):
        foreign().half()
