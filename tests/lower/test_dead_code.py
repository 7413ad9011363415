"""What nothing needs goes, and the user's inputs stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.lower.programs import agrees, applied, exported, ops
from torchsmith.lower.dead_code import dead_code


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.shared = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.also = self.shared
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.unused(x).relu()
        self.calls.add_(1)
        return self.used(x) + self.also


def test_nodes_and_parameters_without_users_go() -> None:
    x = torch.randn(2, 4)
    module = Net()
    program = exported(module, x, x).run_decompositions({})
    assert "unused.weight" in program.state_dict
    lowered = applied(dead_code, program)
    assert ops(lowered) == ["add", "linear", "add"]
    assert not any(name.startswith("unused") for name in lowered.state_dict) and "used.weight" in lowered.state_dict
    assert "calls" in lowered.constants and "unused.weight" in program.state_dict
    agrees(lowered, module, x, x)


def test_asserts_stay() -> None:
    def function(x: Tensor) -> Tensor:
        torch._check(x.sum().to(torch.int64).item() > 3)
        return x + 1

    assert "_assert_scalar" in ops(applied(dead_code, exported(function, torch.ones(4))))


def test_a_saved_program_carries_no_dead_weight(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 4)
    program = applied(dead_code, exported(Net(), x, x).run_decompositions({}))
    torch.export.save(program, tmp_path / "p.pt2")
    agrees(torch.export.load(tmp_path / "p.pt2"), Net().cpu(), x, x, limit=10)
