"""Engines and PyTorch side by side on a GPU, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tests.runtime.toy import hybrid, nodes_of, segment_of
from torchsmith.errors import InvalidInput, TorchsmithError
from torchsmith.package import load, save
from torchsmith.partition.splice import splice
from torchsmith.runtime.compiled import CompiledModule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count.add_(1)
        return torch.tanh(torch.relu(self.first(x))), self.count * 2


def compiled() -> tuple[Net, CompiledModule]:
    module = Net().cuda().eval()
    program = export(module, (torch.randn(2, 4, device="cuda"),), dynamic_shapes=({0: Dim("rows", min=1, max=9)},))
    spliced = splice(program, [segment_of(program, nodes_of(program, "relu", "tanh"))])
    assert spliced.constants["engine_0"].device.type == "cpu"  # bytes stay where they cost no GPU memory
    return module, CompiledModule(spliced, {})


def test_it_runs_on_the_gpu() -> None:
    module, fast = compiled()
    x = torch.randn(5, 4, device="cuda")
    torch.testing.assert_close(fast(x)[0], module(x)[0].detach())
    assert fast.device.type == "cuda" and fast.plan.engine_calls[0].device.type == "cuda"
    assert fast.cuda() is fast
    with pytest.raises(TorchsmithError, match="cannot move to cpu"):
        fast.cpu()
    with pytest.raises(InvalidInput, match=r"argument 'x' is on cpu; .* move it with .to"):
        fast(x.cpu())


def test_its_program_runs_too() -> None:
    _, fast = compiled()
    x = torch.randn(5, 4, device="cuda")
    torch.testing.assert_close(fast.program.module()(x)[0], fast(x)[0])


def test_a_package_goes_back_to_the_gpu(tmp_path: Path) -> None:
    _, fast = compiled()
    x = torch.randn(5, 4, device="cuda")
    wanted = fast(x)[0]
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    torch.testing.assert_close(again(x)[0], wanted, rtol=0, atol=0)
    assert again(x)[1].item() == 6  # the buffer as it was saved
    torch.testing.assert_close(again.program.module()(x)[0], wanted)
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(x)[0], wanted)


def test_the_engine_may_stand_on_the_gpu() -> None:
    program = hybrid(nn.Sequential(nn.ReLU()).cuda(), (torch.randn(2, device="cuda"),))
    program.constants["engine_0"] = program.constants["engine_0"].cuda()
    x = torch.randn(2, device="cuda")
    torch.testing.assert_close(CompiledModule(program, {})(x), torch.relu(x))
