"""What engines do at run time and can be told without a GPU: weights, the choice of a variant, which GPUs they run on."""

from __future__ import annotations

import pytest
import torch

from torchsmith.backends.cuda.plan import Variant
from torchsmith.backends.cuda.run import check_target, nearest, upload
from torchsmith.errors import EngineMismatch
from torchsmith.target import Target

CPU = torch.device("cpu")


def test_weights_go_up_in_one_piece() -> None:
    given = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.randn(2).half(), "none": torch.zeros(0, 3)}
    found = upload(given, CPU)
    assert len({t.untyped_storage().data_ptr() for t in found.values() if t.numel()}) == 1
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor.flatten()) and found[name].dtype == tensor.dtype
        assert found[name].storage_offset() * tensor.element_size() % 256 == 0


def test_the_nearest_variant() -> None:
    one, eight, many = (Variant({"n": n, "t": 16}, ()) for n in (1, 8, 128))
    for n, wanted in ((1, one), (2, one), (3, eight), (8, eight), (30, eight), (40, many), (1000, many), (0, one)):
        assert nearest((one, eight, many), {"n": n, "t": 16}) is wanted, n
    assert nearest((Variant({}, ()),), {"n": 5}).at == {}


@pytest.mark.parametrize(
    ("want", "have", "runs"),
    [
        (80, 80, True),
        (80, 86, True),
        (80, 89, True),
        (86, 80, False),
        (80, 90, False),
        (90, 90, True),
        (90, 100, False),
        (100, 103, False),
    ],
)
def test_which_gpus_run_it(want: int, have: int, runs: bool) -> None:
    built, here = Target("cuda", f"sm_{want}"), Target("cuda", f"sm_{have}", (), "a GPU")
    assert built.runs_on(here) is runs
    if runs:
        check_target(built, here)
        return
    sentence = rf"built for sm_{want}, and this GPU \(a GPU\) is sm_{have}; compile the model here, or with target='sm_{have}'"
    with pytest.raises(EngineMismatch, match=sentence):
        check_target(built, here)
