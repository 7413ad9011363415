import pytest
import torch
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 6), (2, 6, 5, 3), (1, 6, 3, 2, 2)], ids=str)
def test_group_norm(shape: tuple, groups: int) -> None:
    if groups == 6 and len(shape) == 2:
        pytest.skip("PyTorch refuses groups of one element")
    OpCase(lambda x, w, b: F.group_norm(x, groups, w, b, 1e-3), rand(*shape), rand(6), rand(6)).accepted()


def test_without_parameters() -> None:
    OpCase(lambda x: F.group_norm(x, 3), rand(2, 6, 4)).accepted()


@pytest.mark.parametrize("groups", [1, 3])
def test_the_core_name_gives_statistics_too(groups: int) -> None:
    OpCase(lambda x, w, b: torch.native_group_norm(x, w, b, 2, 6, 20, groups, 1e-5), rand(2, 6, 4, 5), rand(6), rand(6)).accepted()


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 3, 4, 5), (2, 3, 2, 3, 2)], ids=str)
def test_instance_norm(shape: tuple) -> None:
    OpCase(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), rand(*shape), rand(3), rand(3)).accepted()


def test_instance_norm_with_running_statistics() -> None:
    case = OpCase(lambda x, m, v: F.instance_norm(x, m, v, use_input_stats=False), rand(2, 3, 7), rand(3), rand(3, low=0.5))
    case.accepted()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_sizes_that_vary(groups: int) -> None:
    x, w = rand(2, 6, 4, 5), rand(6)
    OpCase(lambda x, w: F.group_norm(x, groups, w), x, w, dynamic=[(0, 0), (0, 3)], tie=False, least=2).accepted()
