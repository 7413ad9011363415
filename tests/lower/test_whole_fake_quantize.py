"""Decomposed fake quantization as one op again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchsmith
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


class Learned(nn.Module):
    """Rounded by learned scales and zero points, as LSQ has them."""

    def __init__(self, point: float) -> None:
        super().__init__()
        self.scale, self.point = nn.Parameter(torch.tensor([0.05])), nn.Parameter(torch.tensor([point]))
        self.scales, self.points = nn.Parameter(torch.tensor([0.1, 0.2, 0.3])), nn.Parameter(torch.tensor([0.5, -1.5, point]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.point, -128, 127, 1.0)
        return torch._fake_quantize_learnable_per_channel_affine(x, self.scales, self.points, 1, -127, 127, 0.5)


@pytest.mark.parametrize("point", [0.0, 3.2, 3.5, -2.7, -2.5, 200.0])
def test_learned_zero_points_are_whole_numbers_as_training_rounded_them(point: float) -> None:
    model, x = Learned(point), rand(4, 3) * 4
    program = applied(whole_fake_quantize, exported(model, x))
    assert ops(program) == ["fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


def test_learned_ranges_make_int8_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale, self.zero = nn.Linear(8, 4), nn.Parameter(torch.tensor([0.03])), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            x, weight = (
                torch._fake_quantize_learnable_per_tensor_affine(t, self.scale, self.zero, -128, 127, 1.0)
                for t in (x, self.layer.weight)
            )
            return nn.functional.linear(x, weight, self.layer.bias)

    fast = torchsmith.compile(Layer().eval(), inputs=[rand(2, 8)], enabled_precisions={torch.int8}, min_block_size=1)
    assert torchsmith.explain(fast).eight_bits == "1 of 1 layers in int8"
