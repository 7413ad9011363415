"""Decomposed fake quantization as one op again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.lower.programs import applied, exported, ops
from torchsmith.lower.editing import Lowering
from torchsmith.lower.whole_fake_quantize import whole_fake_quantize
from torchsmith.testing.op_case import rand


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("scale", torch.tensor([0.05]))
        self.register_buffer("points", torch.zeros(3, dtype=torch.int32))
        self.register_buffer("point", torch.tensor([3], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.02, 1, -128, 127)
        x = torch.fake_quantize_per_tensor_affine(x + 1, self.get_buffer("scale"), self.get_buffer("point"), 0, 255)
        x = torch.fake_quantize_per_channel_affine(x + 1, self.get_buffer("scales"), self.get_buffer("points"), 1, -127, 127)
        return x * 2


def test_each_kind_is_put_together() -> None:
    program = exported(Rounded(), rand(4, 3))
    decomposed = program.run_decompositions()
    assert sum("cachemask" in name for name in ops(decomposed)) == 3
    # the switch that one of them is decomposed with is left, and used by nothing
    assert [name for name in ops(applied(whole_fake_quantize, decomposed)) if name != "full"] == ops(program)


def test_a_mask_that_is_used_stays() -> None:
    def masked(x: Tensor) -> tuple[Tensor, Tensor]:
        y, mask = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, 0.02, 0, -128, 127)
        return y, mask

    program = exported(masked, rand(4, 3))
    assert ops(applied(whole_fake_quantize, program)) == ["fake_quantize_per_tensor_affine_cachemask"]


def test_what_the_user_keeps_stays() -> None:
    program = exported(Rounded(), rand(4, 3)).run_decompositions()
    kept = Lowering(kept=frozenset({"aten.fake_quantize_per_channel_affine_cachemask"}))
    assert sum("cachemask" in name for name in ops(applied(whole_fake_quantize, program, kept))) == 1
