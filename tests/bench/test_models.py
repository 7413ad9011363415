"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchsmith.bench.models import Inputs, load, randomise
from torchsmith.errors import InvalidOption

NETS = Path(__file__).parent / "nets.py"


def test_a_timm_model_is_the_same_each_time() -> None:
    model = load("test_efficientnet")
    first, second = (model.module(1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs = model.inputs(3, seed=1)
    assert inputs.items == 3 and inputs.args[0].shape == (3, 3, 160, 160)
    assert torch.equal(inputs.args[0], model.inputs(3, seed=1).args[0])
    assert not torch.equal(inputs.args[0], model.inputs(3, seed=2).args[0])


def test_making_a_model_leaves_the_random_state_alone() -> None:
    model = load("test_efficientnet")
    before = torch.get_rng_state()
    model.module(1)
    model.inputs(1, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_statistics_look_trained() -> None:
    """Nothing is left at a value that a wrong fold would not show: no unit variance, no zero bias, no dead branch."""
    module = randomise(nn.Sequential(nn.Conv2d(3, 64, 1, bias=False), nn.BatchNorm2d(64)), seed=0)
    norm = module[1]
    nn.init.zeros_(norm.weight)
    randomise(module, seed=0)
    assert float(norm.running_mean.std()) == pytest.approx(0.1, rel=0.3)
    assert 0.5 <= float(norm.running_var.min()) < 0.7 and 1.3 < float(norm.running_var.max()) <= 1.5
    assert float(norm.weight.detach().std()) == pytest.approx(0.1, rel=0.3)
    assert float(norm.bias.detach().abs().min()) > 0


def test_a_head_of_zeros_hides_nothing() -> None:
    head = nn.Linear(8, 3)
    nn.init.zeros_(head.weight)
    randomise(head, seed=0)
    assert float(head(torch.randn(100, 8)).detach().std(0).min()) > 0.1


def test_a_trained_parameter_is_kept() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight)
    before = norm.weight.clone()
    assert torch.equal(randomise(norm, seed=0).weight, before)


def test_a_transformers_model_takes_128_tokens() -> None:
    model = load("distilbert")
    inputs = model.inputs(2, seed=0)
    assert {name: tuple(t.shape) for name, t in inputs.kwargs.items()} == {"input_ids": (2, 128), "attention_mask": (2, 128)}
    assert inputs.items == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("efficientnet_b00", "neither a timm name, nor a transformers name.*did you mean efficientnet_b0"),
        ("distilbrt", "did you mean distilbert"),
        ("wav2vec2", "takes 'input_values'.*file.py:function"),
        ("nowhere.py:net", "there is no file nowhere.py"),
        (f"{NETS}:nothing", "has no function 'nothing'"),
        (f"{NETS}:number", r"returned int; it returns a module"),
    ],
)
def test_what_is_not_known_gets_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        load(name).module(1)


def test_a_default_configuration_that_is_too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsmith.bench.models.memory_bytes", lambda: 2**30)
    with pytest.raises(InvalidOption, match=r"0.1 billion parameters.*this machine has 1 GiB"):
        load("distilbert")


def test_a_function_may_take_the_batch() -> None:
    model = load(f"{NETS}:conv")
    assert model.batched and model.inputs(5, seed=0).args[0].shape[0] == 5
    assert not model.module(1).training


def test_a_function_without_a_batch_keeps_its_own_inputs() -> None:
    model = load(f"{NETS}:pair")
    inputs = model.inputs(8, seed=0)
    assert not model.batched and inputs.items == 3 and list(inputs.kwargs) == ["scale"]


def test_a_module_alone_is_given_images() -> None:
    model = load(f"{NETS}:images")
    assert model.batched and model.inputs(2, seed=0).args[0].shape == (2, 3, 224, 224)


def test_items_of_inputs_without_a_batch() -> None:
    assert Inputs((torch.tensor(1.0),)).items == 1
    assert Inputs(("text",)).items == 1
