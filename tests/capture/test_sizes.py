"""Sizes that models ask about, or that attention compares: captured for the whole range that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torchsmith
from torchsmith.capture import capture
from torchsmith.convert import ranges_of
from torchsmith.errors import CaptureError, InvalidInput
from torchsmith.inputs import Input, resolve


class Model(nn.Module):
    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)


def ranges(run: Callable[..., Tensor], *inputs: Input) -> list[tuple[int, int | None]]:
    """The sizes that the captured program takes, after it was compared with the model at its smallest ones."""
    program = capture(Model(run).eval(), resolve(list(inputs))).program
    least = [given.example(tuple(d if isinstance(d, int) else max(d.min, 1) for d in given.dims), None, 0) for given in inputs]
    assert torch.equal(program.module()(*least), run(*least))
    return list(ranges_of(program).values())


def the_same_at_one(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x + x


def not_the_same_at_one(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x


def not_the_same_at_one_by_many(x: Tensor) -> Tensor:
    """At (1, 1) both are zero."""
    return x - x.mean(1, keepdim=True) if x.shape[0] == 1 else x * 0


def both_may_be_one(x: Tensor) -> Tensor:
    return the_same_at_one(x) + the_same_at_one(x.transpose(0, 1)).transpose(0, 1)


RANGED = Input(min_shape=(1, 1), opt_shape=(4, 6), max_shape=(8, 9))


def test_a_model_that_asks_whether_a_size_is_one_takes_the_whole_range() -> None:
    assert ranges(the_same_at_one, Input(min_shape=(1, 3), max_shape=(8, 3))) == [(1, 8)]
    assert ranges(the_same_at_one, Input((Dim("batch", min=1, max=8), 3))) == [(1, 8)]
    assert ranges(the_same_at_one, Input((Dim("batch", min=1), 3))) == [(1, None)]
    assert ranges(the_same_at_one, Input((Dim("batch", max=8), 3))) == [(0, 8)]
    assert ranges(both_may_be_one, RANGED) == [(1, 8), (1, 9)]


def test_a_size_of_at_least_two_stays_so() -> None:
    assert ranges(the_same_at_one, Input(min_shape=(2, 3), max_shape=(8, 3))) == [(2, 8)]


@pytest.mark.parametrize("run", [not_the_same_at_one, not_the_same_at_one_by_many])
def test_a_model_that_does_something_else_at_one_is_refused(run: Callable[..., Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"smallest sizes .* computes something else than at larger sizes.*raise the min to 2"):
        ranges(run, RANGED)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Causal, and over the tokens that the mask has."""
    causal = torch.ones(x.shape[1], mask.shape[1], dtype=torch.bool).tril()
    heads = x.unflatten(2, (2, 4)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask[:, None, None, :] & causal)


def test_a_mask_is_as_wide_as_what_it_masks() -> None:
    x = Input(min_shape=(1, 2, 8), opt_shape=(2, 16, 8), max_shape=(4, 32, 8))
    mask = Input(min_shape=(1, 2), opt_shape=(2, 16), max_shape=(4, 64), dtype=torch.bool)
    assert ranges(masked, x, mask) == [(1, 4), (2, 32)]


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TINY, use_cache=False))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, use_cache=False))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_language_models_of_any_batch_and_length_are_one_engine(make: Callable[[], nn.Module], with_mask: bool) -> None:
    torch.manual_seed(0)
    model = make().eval()
    given = Input(min_shape=(1, 2), opt_shape=(2, 16), max_shape=(4, 32), dtype=torch.long)
    fast = torchsmith.compile(model, inputs=[given], kwarg_inputs={"attention_mask": given} if with_mask else None)
    assert torchsmith.explain(fast).summary.startswith("1 engine")
    for batch, length in ((1, 2), (1, 32), (3, 9), (4, 2), (4, 32)):
        ids = torch.randint(0, 50, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, length - length // 3 :] = 0
        extra: dict[str, Any] = {"attention_mask": mask} if with_mask else {}
        with torch.no_grad():
            wanted = model(ids, **extra).logits
        kept = mask.bool() if with_mask else torch.ones_like(mask).bool()
        torch.testing.assert_close(fast(ids, **extra).logits[kept], wanted[kept], rtol=1e-4, atol=1e-4)
    if with_mask:
        with pytest.raises(InvalidInput, match="attention_mask"):
            fast(ids, attention_mask=mask[:, :-1])
