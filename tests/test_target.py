from __future__ import annotations

import json
import platform

import pytest

from torchsmith.errors import InvalidOption
from torchsmith.target import CPU_FEATURES, Target, this_cpu


def test_this_cpu_is_described_once() -> None:
    cpu = Target.parse("cpu")
    assert cpu is this_cpu()
    assert cpu.device == "cpu" and cpu.arch == platform.machine() and cpu.chip
    assert list(cpu.features) == [f for f in CPU_FEATURES if f in cpu.features], "not in the order of CPU_FEATURES"


def test_a_gpu_is_named_by_its_architecture() -> None:
    assert Target.parse("sm_90") == Target("cuda", "sm_90")
    assert str(Target("cuda", "sm_90", chip="H100")) == "cuda sm_90 (H100)"


@pytest.mark.parametrize("name", ["gpu", "sm90", "sm_9000", "", "cpu:0"])
def test_an_unknown_target_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="use 'cpu' or a GPU architecture such as 'sm_90'"):
        Target.parse(name)


def test_a_target_survives_json() -> None:
    target = Target("cpu", "x86_64", ("avx2", "avx512f"), "some chip")
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
