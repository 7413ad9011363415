import pytest
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize("shape", [(2, 5), (5,), (1, 1, 5), (2, 3, 7, 5)], ids=str)
def test_linear(shape: tuple) -> None:
    OpCase(lambda x, w, b: F.linear(x, w, b), rand(*shape), rand(3, 5), rand(3)).accepted()


def test_no_bias() -> None:
    OpCase(lambda x, w: F.linear(x, w), rand(2, 1), rand(1, 1)).accepted()


def test_bilinear() -> None:
    OpCase(
        lambda a, b, w, c: F.bilinear(a, b, w, c), rand(2, 7, 3), rand(2, 7, 4), rand(5, 3, 4), rand(5), dynamic=[(0, 1), (1, 1)]
    ).accepted()


def test_sizes_that_vary() -> None:
    OpCase(lambda x, w, b: F.linear(x, w, b), rand(2, 3, 5), rand(4, 5), rand(4), dynamic=[(0, 0), (0, 1)], tie=False).accepted()


def test_a_vector_of_weights_is_refused() -> None:
    OpCase(lambda x, w: F.linear(x, w), rand(2, 5), rand(5)).refused(why=r"it takes \(\.\.\., K\) and \(N, K\)")


def test_no_elements() -> None:
    case = OpCase(lambda x, w: F.linear(x, w), rand(0, 5), rand(2, 5), engines=())
    case.accepted()
    case.refused(why="tensors without elements", on="openvino")
