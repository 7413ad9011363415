from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from torchsmith.config import Config, options
from torchsmith.dtypes import dtype
from torchsmith.errors import InvalidOption


def test_flat_options_reach_their_stages() -> None:
    config = Config.from_options(min_block_size=1, strict=True, num_threads=2, backend="openvino", enabled_precisions={torch.half})
    assert config.partition.min_block_size == 1
    assert config.capture.strict and config.build.num_threads == 2 and config.backend == "openvino"
    assert config.quantize.enabled_precisions == {torch.float16}


def test_nothing_given_is_the_default() -> None:
    assert Config.from_options() == Config()


def test_every_option_is_documented_and_flat_names_are_unique() -> None:
    stages = [f.default_factory for f in dataclasses.fields(Config) if isinstance(f.default_factory, type)]
    names = [g.name for stage in stages for g in dataclasses.fields(stage)]
    assert len(names) == len(set(names))
    for name, field in options().items():
        assert field.metadata["help"] and not field.metadata["help"].endswith("."), name


@pytest.mark.parametrize(
    ("name", "near"),
    [("min_blok_size", "min_block_size"), ("enabled_precision", "enabled_precisions"), ("kwarg_input", "kwarg_inputs")],
)
def test_an_unknown_option_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InvalidOption, match=f"no option {name!r}; did you mean {near!r}"):
        Config.from_options(**{name: 1})


def test_an_option_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(InvalidOption, match=r"known options: .*min_block_size"):
        Config.from_options(zzzz=1)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("min_block_size", -1, "a whole number that is not negative"),
        ("min_block_size", True, "a whole number"),
        ("min_block_size", 1.5, "a whole number"),
        ("strict", 1, "True or False"),
        ("require_full_compilation", "yes", "True or False"),
        ("performance_hint", "fast", "one of latency, throughput"),
        ("torch_executed_ops", "aten.add", "a set of op names"),
        ("enabled_precisions", set(), "it takes a set such as"),
        ("enabled_precisions", "half", "it takes a set such as"),
        ("enabled_precisions", {torch.int64}, "torch.int64"),
        ("enabled_precisions", {"float9"}, "no element type"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, value: Any, why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        Config.from_options(**{name: value})


@pytest.mark.parametrize("given", [{torch.half}, {dtype.half}, [torch.float16], torch.float16, dtype.f16, {"half"}])
def test_precisions_are_read_in_every_spelling(given: Any) -> None:
    assert Config.from_options(enabled_precisions=given).quantize.enabled_precisions == frozenset({torch.float16})


def test_a_choice_is_read_in_any_case() -> None:
    assert Config.from_options(performance_hint="THROUGHPUT").build.performance_hint == "throughput"


def test_ops_to_leave_to_pytorch_may_be_overloads() -> None:
    config = Config.from_options(torch_executed_ops={torch.ops.aten.add.Tensor, "aten.mul"})
    assert config.partition.torch_executed_ops == {"aten.add.Tensor", "aten.mul"}


def test_int8_may_be_enabled_beside_floats_and_eight_bits_without_a_sign_may_not() -> None:
    given = Config.from_options(enabled_precisions={torch.half, torch.int8})
    assert given.quantize.enabled_precisions == {torch.float16, torch.int8}
    with pytest.raises(InvalidOption, match=r"torch.uint8; this version computes in .*, torch\.int8 and torch\.float8_e4m3fn"):
        Config.from_options(enabled_precisions={torch.uint8})
