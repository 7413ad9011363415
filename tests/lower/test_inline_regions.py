"""Regions under `torch.no_grad()` become plain nodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith.lower.editing import copied
from torchsmith.lower.inline_regions import inline_regions

X = torch.randn(3, 4)


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = self.linear(x).relu()
            with torch.no_grad():
                z = (y * 2).sin()
        return y + 1, z


def test_regions_are_inlined_with_their_inner_ones() -> None:
    module = Regions().eval()
    program = exported(module, X)
    assert "wrap_with_set_grad_enabled" in ops(program)
    program = applied(inline_regions, program)
    assert ops(program) == ["linear", "relu", "mul", "sin", "add"]
    assert all("region" in node.meta["stack_trace"] for node in program.graph.nodes if node.op == "call_function")
    agrees(program, module, X)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                z = self.linear(x)
        return y.float() + z


def test_the_casts_of_autocast_are_written_out() -> None:
    module = Mixed().eval()
    program = exported(module, X)
    assert "wrap_with_autocast" in ops(program)
    program = inline_regions(copied(program), HOW)
    assert sorted(set(ops(program)) - {"_assert_tensor_metadata"}) == ["_to_copy", "add", "linear"]
    dtypes = [node.meta["val"].dtype for node in program.graph.nodes if "aten.linear" in str(node.target)]
    assert dtypes == [torch.bfloat16, torch.float32]
    agrees(program, module, X)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def test_branches_that_depend_on_data_stay() -> None:
    program = applied(inline_regions, exported(Branches(), X))
    assert "cond" in ops(program)
    agrees(program, Branches(), X)
