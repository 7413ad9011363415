import pytest
import torch
from torch.nn import functional as F

from torchsmith.ir.interpret import interpret
from torchsmith.testing.op_case import OpCase, rand

STATISTICS = rand(4, low=-1.0), rand(4, low=0.5)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 5, 3), (1, 4, 2, 3, 2), (0, 4, 3)], ids=str)
def test_batch_norm(shape: tuple) -> None:
    OpCase(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, eps=1e-3), rand(*shape), *STATISTICS, rand(4), rand(4)).accepted()


def test_one_channel_without_parameters() -> None:
    OpCase(lambda x, m, v: F.batch_norm(x, m, v), rand(2, 1, 3), torch.tensor([0.3]), torch.tensor([1.7])).accepted()


@pytest.mark.parametrize("name", ["native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update"])
def test_core_names(name: str) -> None:
    training = (False,) if name == "native_batch_norm" else ()
    function = getattr(torch.ops.aten, name).default
    OpCase(
        lambda x, w, b, m, v: function(x, w, b, m, v, *training, 0.1, 1e-5)[0], rand(2, 4, 3), rand(4), rand(4), *STATISTICS
    ).accepted()


def test_reduced_inputs_keep_wide_parameters() -> None:
    x, (mean, var) = rand(2, 4, 3).bfloat16(), STATISTICS
    (given,) = interpret(OpCase(lambda x, m, v: F.batch_norm(x, m, v), x, mean, var).graph(), (x, mean, var))
    assert torch.equal(given, F.batch_norm(x, mean, var))


def test_sizes_that_vary() -> None:
    OpCase(lambda x, m, v: F.batch_norm(x, m, v), rand(2, 4, 3, 3), *STATISTICS, dynamic=[(0, 0), (0, 2)], tie=False).accepted()


@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3, 3)], ids=str)
def test_without_running_statistics(shape: tuple) -> None:
    OpCase(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), rand(*shape), rand(4), rand(4)).accepted()
    OpCase(lambda x: F.batch_norm(x, None, None, training=True), rand(*shape)).accepted()


def test_training_is_refused() -> None:
    function = torch.ops.aten.native_batch_norm.default
    case = OpCase(lambda x, m, v: function(x, None, None, m, v, True, 0.1, 1e-5)[0], rand(2, 4, 3), *STATISTICS)
    case.refused(why=r"call \.eval\(\)")
