"""Two of four: the mask against brute force, ties, and recognition."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchsmith.errors import InvalidInput
from torchsmith.sparsity import is_two_four, two_four_mask


def brute_force(weight: Tensor, dim: int) -> Tensor:
    """Four at a time, the pair of the greatest sum; of equal ones the first in the order of their places."""
    rows = weight.movedim(dim, -1)
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    for place in itertools.product(*map(range, rows.shape[:-1])):
        for start in range(0, rows.shape[-1], 4):
            sizes = [abs(v) for v in rows[place][start : start + 4].tolist()]
            first, second = sorted(range(4), key=lambda i: (-sizes[i], i))[:2]
            mask[(*place, start + first)] = mask[(*place, start + second)] = True
    return mask.movedim(-1, dim)


SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3)


@settings(max_examples=60, deadline=None)
@given(before=SHAPES, groups=st.integers(1, 4), after=SHAPES, levels=st.sampled_from([1, 2, 3, 1000]), seed=st.integers(0, 2**16))
def test_the_mask_is_that_of_brute_force(before: list[int], groups: int, after: list[int], levels: int, seed: int) -> None:
    """Few levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-levels, levels + 1, (*before, 4 * groups, *after), generator=generator).float()
    dim = len(before)
    mask = two_four_mask(weight, dim)
    assert torch.equal(mask, brute_force(weight, dim))
    assert torch.equal(mask, two_four_mask(weight, dim - weight.dim()))
    assert torch.equal(mask.movedim(dim, -1).unflatten(-1, (-1, 4)).sum(-1), torch.full((*before, *after, groups), 2))
    assert is_two_four(weight * mask, dim)


@settings(max_examples=60, deadline=None)
@given(before=SHAPES, size=st.integers(0, 12), after=SHAPES, zeros=st.floats(0.3, 1.0), seed=st.integers(0, 2**16))
def test_recognition_is_that_of_counting(before: list[int], size: int, after: list[int], zeros: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand((*before, size, *after), generator=generator) > zeros).float()
    dim = len(before)
    counts = weight.movedim(dim, -1)[..., : size - size % 4].unflatten(-1, (-1, 4)).sum(-1) if size >= 4 else torch.zeros(0)
    assert is_two_four(weight, dim) == (size % 4 == 0 and bool((counts <= 2).all()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 8, 2, 2).to(dtype)
    mask = two_four_mask(weight)
    assert torch.equal(mask, brute_force(weight.double(), 1))
    assert is_two_four(weight * mask) and not is_two_four(weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_whole_numbers_are_recognised_too(dtype: torch.dtype) -> None:
    assert is_two_four(torch.tensor([[0, 1, 1, 0, 0, 0, 0, 1]]).to(dtype))
    assert not is_two_four(torch.tensor([[0, 1, 1, 1, 0, 0, 0, 1]]).to(dtype))


def test_of_equal_magnitudes_the_earlier_stay() -> None:
    weight = torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 0], [-0.0, 2, -2, 2], [3, 1, 1, 1]])
    assert two_four_mask(weight).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]


def test_infinities_are_the_largest() -> None:
    assert two_four_mask(torch.tensor([[1.0, -torch.inf, 5, torch.inf]])).int().tolist() == [[0, 1, 0, 1]]


def test_every_pattern_of_zeros() -> None:
    for pattern in itertools.product((0.0, 1.0), repeat=4):
        assert is_two_four(torch.tensor([pattern])) == (sum(pattern) <= 2)


def test_one_group_that_is_dense_is_found_anywhere() -> None:
    weight = torch.zeros(6, 8, 3)
    assert is_two_four(weight, 1)
    for row, group, column in itertools.product(range(6), range(2), range(3)):
        spoilt = weight.clone()
        spoilt[row, 4 * group + 1 : 4 * group + 4, column] = 1
        assert not is_two_four(spoilt, 1)


def test_any_memory_layout() -> None:
    weight = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    pruned = weight * two_four_mask(weight)
    assert is_two_four(pruned) and is_two_four(pruned.contiguous()) and is_two_four(pruned.flatten(1).t()[:8].t().t(), 0) is False


def test_what_cannot_be_grouped() -> None:
    assert not is_two_four(torch.zeros(4, 6))
    with pytest.raises(InvalidInput, match=r"dimension 1 of weights \(4, 6\) has size 6; 2:4 takes multiples of 4"):
        two_four_mask(torch.zeros(4, 6))
    with pytest.raises(InvalidInput, match=r"shape \(1, 4\) have NaN among them"):
        two_four_mask(torch.tensor([[1.0, torch.nan, 2.0, 3.0]]))
