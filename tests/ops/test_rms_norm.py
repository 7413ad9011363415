import pytest
import torch
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize(("shape", "dims"), [((3, 7), 1), ((7,), 1), ((2, 5, 3), 2), ((2, 3, 5, 4), 1), ((1, 1), 1)], ids=str)
def test_rms_norm(shape: tuple, dims: int) -> None:
    own = shape[-dims:]
    OpCase(lambda x, w: F.rms_norm(x, own, w, 1e-5), rand(*shape), rand(*own)).accepted()


def test_without_parameters() -> None:
    OpCase(lambda x: F.rms_norm(x, (5,)), rand(2, 5)).accepted()


def test_the_default_eps_is_that_of_the_dtype() -> None:
    x = torch.full((2, 5), 1e-4)
    for dtype in (torch.float32, torch.bfloat16):
        given = OpCase(lambda x: F.rms_norm(x, (5,)), x.to(dtype)).graph()
        (eps,) = (n.op.eps for n in given.nodes)
        assert torch.allclose(F.rms_norm(x.to(dtype), (5,)), F.rms_norm(x.to(dtype), (5,), None, eps)), dtype


def test_the_core_name_gives_statistics_too() -> None:
    OpCase(lambda x, w: torch.ops.aten._fused_rms_norm(x, (5,), w, 1e-5), rand(2, 3, 5), rand(5)).accepted()


def test_sizes_that_vary() -> None:
    OpCase(lambda x, w: F.rms_norm(x, (5,), w, 1e-5), rand(2, 3, 5), rand(5), dynamic=[(0, 0), (0, 1)], tie=False).accepted()
