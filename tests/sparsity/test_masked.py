"""Masked fine-tuning: the zeros hold while the model trains, and it exports and compiles all the while."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import torchsmith
from torchsmith.errors import InvalidInput
from torchsmith.sparsity import is_two_four, make_permanent, plan, report
from torchsmith.testing.pipeline import Pipeline


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(torch.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> list[float]:
    x, wanted = torch.randn(16, 3, 8, 8), torch.randint(0, 16, (16,))
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_stay_zeros_while_the_others_learn(kind: str) -> None:
    sparse = torchsmith.sparsify(Net(), finetune=True)
    before = {name: getattr(sparse, name).weight.detach().clone() for name in ("conv", "head")}
    losses = train(sparse, OPTIMIZERS[kind](sparse))
    assert losses[-1] < 0.9 * losses[0]
    done = make_permanent(sparse)
    for name, was in before.items():
        for now in (getattr(sparse, name).weight, getattr(done, name).weight):
            assert is_two_four(now) and torch.equal(now == 0, was == 0)
            assert not torch.isclose(now, was)[was != 0].all()
        assert torch.equal(sparse.get_submodule(name).weight, done.get_submodule(name).weight)


def test_the_masks_are_those_of_pruning() -> None:
    net = Net()
    masked, pruned = torchsmith.sparsify(net, finetune=True), torchsmith.sparsify(net)
    assert torch.equal(masked.conv.weight, pruned.conv.weight) and torch.equal(masked.head.weight, pruned.head.weight)
    assert report(masked) == report(pruned)
    assert not parametrize.is_parametrized(net.conv)


def test_made_permanent_it_is_the_model_that_it_was() -> None:
    net = Net()
    masked = torchsmith.sparsify(net, finetune=True)
    done = make_permanent(masked)
    assert set(done.state_dict()) == set(net.state_dict())
    assert type(done.conv) is nn.Conv2d and isinstance(done.conv.weight, nn.Parameter) and done.conv.weight.requires_grad
    Net().load_state_dict(done.state_dict())
    assert report(done) == report(masked)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(done.eval()(x), masked.eval()(x))


def test_a_copy_that_is_made_permanent_leaves_the_original_masked() -> None:
    """Parametrized modules share their class with their deep copies; here each has its own when it is changed."""
    masked = torchsmith.sparsify(Net(), finetune=True)
    average = copy.deepcopy(masked)
    make_permanent(masked, inplace=True)
    assert type(masked.conv) is nn.Conv2d
    assert is_two_four(average.conv.weight) and parametrize.is_parametrized(average.conv, "weight")
    train(average, torch.optim.SGD(average.parameters(), lr=0.1), steps=2)
    assert is_two_four(make_permanent(average).conv.weight)


def test_a_layer_with_another_parametrization_keeps_it_in_the_original() -> None:
    net = Net()
    parametrize.register_parametrization(net.head, "bias", nn.Tanh())
    masked = torchsmith.sparsify(net, finetune=True)
    assert not parametrize.is_parametrized(net.head, "weight") and isinstance(net.head.weight, nn.Parameter)
    done = make_permanent(masked)
    assert parametrize.is_parametrized(done.head, "bias") and not parametrize.is_parametrized(done.head, "weight")


def test_in_place_an_optimizer_goes_on() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    parameters = {id(p) for p in net.parameters()}
    train(net, optimizer, steps=2)
    assert torchsmith.sparsify(net, finetune=True, inplace=True) is net
    assert {id(p) for p in net.parameters()} == parameters
    was = net.conv.weight.detach().clone()
    train(net, optimizer, steps=2)
    assert is_two_four(net.conv.weight) and not torch.equal(net.conv.weight, was)
    assert make_permanent(net, inplace=True) is net
    assert {id(p) for p in net.parameters()} == parameters and is_two_four(net.conv.weight)


def test_momentum_from_before_moves_no_zero() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    train(net, optimizer, steps=3)
    torchsmith.sparsify(net, finetune=True, inplace=True)
    zeros = net.conv.weight == 0
    train(net, optimizer, steps=3)
    assert torch.equal(net.conv.weight == 0, zeros)


def test_what_is_assigned_is_masked() -> None:
    masked = torchsmith.sparsify(Net(), finetune=True)
    masked.head.weight = torch.ones(16, 32)
    assert is_two_four(masked.head.weight) and masked.head.weight.sum() == 16 * 32 / 2


def test_the_state_dict_carries_weights_and_masks(tmp_path: Path) -> None:
    masked = torchsmith.sparsify(Net(), finetune=True)
    train(masked, torch.optim.SGD(masked.parameters(), lr=0.1), steps=2)
    torch.save(masked.state_dict(), tmp_path / "checkpoint.pt")
    other = torchsmith.sparsify(Net(), finetune=True)
    other.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other.eval()(x), masked.eval()(x)) and is_two_four(other.conv.weight)
    assert {k for k in masked.state_dict() if "conv" in k} == {
        "conv.bias",
        "conv.parametrizations.weight.original",
        "conv.parametrizations.weight.0.mask",
    }


def test_other_dtypes_keep_the_mask() -> None:
    half = torchsmith.sparsify(Net(), finetune=True).bfloat16()
    assert half.conv.weight.dtype == torch.bfloat16 and is_two_four(half.conv.weight)


def test_shared_weights_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    model[1].weight = model[0].weight
    masked = torchsmith.sparsify(model, finetune=True)
    assert len(list(masked.parameters())) == 1
    done = make_permanent(masked)
    assert done[0].weight is done[1].weight and is_two_four(done[0].weight)


def test_attention_is_masked_too() -> None:
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    masked = torchsmith.sparsify(model, finetune=True)
    x = torch.randn(2, 5, 32)
    masked(x).sum().backward()
    torch.optim.SGD(masked.parameters(), lr=0.1).step()
    assert is_two_four(masked.self_attn.in_proj_weight) and is_two_four(masked.self_attn.out_proj.weight)
    fast = torchsmith.compile(masked.eval(), inputs=[x], min_block_size=1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), masked(x), atol=1e-5, rtol=1e-4)
    assert is_two_four(make_permanent(masked).self_attn.in_proj_weight)


def test_it_exports() -> None:
    masked = torchsmith.sparsify(Net(), finetune=True).eval()
    x = torch.randn(2, 3, 8, 8)
    for strict in (False, True):
        program = torch.export.export(masked, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), masked(x))


def test_it_compiles_while_it_is_masked_and_after() -> None:
    masked = torchsmith.sparsify(Net(), finetune=True)
    train(masked, torch.optim.SGD(masked.parameters(), lr=0.1), steps=3)
    x = torch.randn(2, 3, 8, 8)
    for model in (masked, make_permanent(masked)):
        road = Pipeline(model, x).capture().lower().partition().whole().build("openvino").matches()
        (segment,) = road.module.report["segments"]
        assert (segment["two_four_weights"], segment["weights"]) == (2, 3)
    assert parametrize.is_parametrized(masked.conv, "weight")  # compiling left it as it was


def test_masked_layers_are_not_pruned_again() -> None:
    masked = torchsmith.sparsify(Net(), finetune=True)
    with pytest.raises(
        InvalidInput, match=r"conv \(masked for fine-tuning already; torchsmith\.sparsity\.make_permanent ends that\)"
    ):
        plan(masked)


def test_nothing_to_make_permanent() -> None:
    with pytest.raises(InvalidInput, match=r"Net has no masked layer; torchsmith\.sparsify\(model, finetune=True\) masks them"):
        make_permanent(Net())


def test_other_parametrizations_beside_the_mask() -> None:
    masked = torchsmith.sparsify(Net(), finetune=True)
    parametrize.register_parametrization(masked.head, "weight", nn.Identity())
    with pytest.raises(InvalidInput, match=r"head\.weight has other parametrizations beside its mask; remove them with"):
        make_permanent(masked)
