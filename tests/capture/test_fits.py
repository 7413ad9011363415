from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from torchsmith.capture.fits import misfit


class Model(nn.Module):
    def forward(self, x: Tensor, table: dict[str, Tensor], n: int, flag: bool = True) -> Tensor:
        return x * n + table["y"].sum(0)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    b = Dim("b", min=2, max=8)
    args = torch.rand(4, 3), {"y": torch.rand(8, 3)}, 3
    return torch.export.export(Model(), args, {"flag": True}, dynamic_shapes=({0: b}, {"y": {0: 2 * b}}, None, None))


def call(x: tuple[int, ...] = (4, 3), y: tuple[int, ...] = (8, 3), n: Any = 3, flag: Any = True, dtype: Any = torch.float32) -> Any:
    return (torch.rand(*x).to(dtype), {"y": torch.rand(*y)}, n), {"flag": flag}


@pytest.mark.parametrize("given", [call(), call((2, 3), (4, 3)), call((8, 3), (16, 3))])
def test_a_call_that_fits(program: ExportedProgram, given: Any) -> None:
    assert misfit(program, *given) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (call((4, 2)), "x was exported with size 3 in dimension 1, and the call has 2"),
        (call((4, 3, 1)), "x was exported with 2 dimensions, and the call has 3"),
        (call((4, 3), (9, 3)), "was exported with size 8 in dimension 0, and the call has 9"),
        (call((9, 3), (18, 3)), r"the size 9 is outside of 2\.\.8"),
        (call(n=4), "n was exported as the constant 3, and the call has 4"),
        (call(n=3.0), "the constant 3, and the call has 3.0"),
        (call(n=torch.ones(())), "the constant 3, and the call has a tensor"),
        (call(dtype=torch.float64), "x was exported as torch.float32, and the call has torch.float64"),
        ((call()[0], {}), r"keyword inputs are \['flag'\], and the call has \[\]"),
        ((call()[0][:2], {"flag": True}), "it takes 4 inputs"),
        ((("text", *call()[0][1:]), {"flag": True}), "x was exported as a tensor, and the call has 'text'"),
    ],
)
def test_a_call_that_does_not(program: ExportedProgram, given: Any, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(misfit(program, *given))
