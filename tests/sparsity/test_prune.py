"""Pruning a model: what is pruned, what is left alone and why, and what users are told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import torchsmith
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.sparsity import is_two_four, plan, report, two_four_mask


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 32, 3)
        self.body = nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 3))
        self.head = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def reasons(model: nn.Module, **options: Any) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan(model, **options).layers}


def beside(layer: nn.Module) -> nn.Module:
    """The layer, in a model that has another one to prune, and a first convolution."""
    return nn.ModuleDict({"stem": nn.Conv2d(3, 8, 1), "it": layer, "other": nn.Linear(64, 64)})


def test_a_copy_is_pruned_and_the_original_is_not() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    sparse = torchsmith.sparsify(net)
    assert isinstance(sparse, Net) and sparse is not net
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    for name in ("body.0", "body.2", "head"):
        dense, pruned = net.get_submodule(name).weight, sparse.get_submodule(name).weight
        assert torch.equal(pruned, dense * two_four_mask(dense)) and is_two_four(pruned)
        assert isinstance(pruned, nn.Parameter) and pruned.requires_grad
    assert torch.equal(sparse.stem.weight, net.stem.weight) and torch.equal(sparse.head.bias, net.head.bias)


def test_in_place_parameters_stay_the_same_objects() -> None:
    net = Net()
    parameters = list(net.parameters())
    assert torchsmith.sparsify(net, inplace=True) is net
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert is_two_four(net.head.weight)


def test_pruning_twice_changes_nothing_more() -> None:
    once = torchsmith.sparsify(Net())
    twice = torchsmith.sparsify(once)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    assert all(layer.kept == 1 for layer in report(twice).pruned)


def test_the_report_says_what_stayed() -> None:
    net = Net()
    found = report(torchsmith.sparsify(net, skip={"body.0"}))
    assert [layer.name for layer in found.pruned] == ["body.2", "head"]
    weight = net.head.weight.detach().double()
    expected = (weight.abs() * two_four_mask(weight)).sum() / weight.abs().sum()
    assert found.layers[-1].kept == pytest.approx(expected.item(), abs=1e-12)
    assert found.summary.startswith("2 of 4 layers of Net pruned to 2:4; of the sum of each one's magnitudes ")
    text = str(found)
    assert "64 × 32 × 3 × 3" in text and "skip names it" in text and f"{found.layers[-1].kept:.1%}" in text
    assert found == plan(net, skip=["body.0"])


def test_weights_of_zero_keep_everything() -> None:
    net = Net()
    nn.init.zeros_(net.head.weight)
    assert plan(net).layers[-1].kept == 1


LAYERS = {
    "a depthwise convolution": nn.Conv2d(32, 32, 3, groups=32),
    "a convolution in 2 groups": nn.Conv2d(64, 64, 3, groups=2),
    "a transposed convolution": nn.ConvTranspose2d(64, 64, 3),
    "a convolution in 1 dimension, not two": nn.Conv1d(64, 64, 3),
    "a convolution in 3 dimensions, not two": nn.Conv3d(64, 64, 3),
    "an embedding is looked up, not multiplied": nn.Embedding(64, 64),
    "neither a convolution nor a linear layer": nn.LSTM(64, 64),
    "24 input features are no multiple of 16, which sparse tensor cores take": nn.Linear(24, 64),
    "8 input channels are no multiple of 16, which sparse tensor cores take": nn.Conv2d(8, 64, 3),
    "it sums over 16 values only, and sparse tensor cores take 32 at a time": nn.Conv2d(16, 64, 1),
    "it has 10 outputs only, and a tile of the sparse tensor cores has 16": nn.Linear(64, 10),
    "its weights are computed at each call (a parametrization, weight norm or a mask); make that permanent first": (
        parametrizations.weight_norm(nn.Linear(64, 64))
    ),
    "its weights have no shape yet; call the model once": nn.LazyLinear(64),
    "its weights are on the meta device, without values; load them first": nn.Linear(64, 64, device="meta"),
    "its weights are complex64, not floating": nn.Linear(64, 64, dtype=torch.complex64),
    "StdConv2d computes other weights from these (standardised, say), and zeros do not stay zeros": StdConv2d(64, 64, 3),
}


@pytest.mark.parametrize("reason", LAYERS)
def test_layers_left_alone(reason: str) -> None:
    found = reasons(beside(LAYERS[reason]))
    assert found == {"stem": "the first convolution, which sees the input itself", "it": reason, "other": ""}


def test_other_ways_of_computing_weights() -> None:
    assert "computed at each call" in reasons(beside(prune.l1_unstructured(nn.Linear(64, 64), "weight", 0.5)))["it"]
    assert "GRUCell" in {layer.kind for layer in plan(beside(nn.GRUCell(64, 64))).layers}


def test_a_sixteen_channel_convolution_with_a_kernel_is_pruned() -> None:
    assert reasons(beside(nn.Conv2d(16, 16, 3)))["it"] == ""


def test_a_layer_whose_class_is_the_users_own_is_tried() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)

    class Asking(nn.Linear):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x) * scale

    assert reasons(beside(Padded(64, 64, 3, dilation=2)))["it"] == ""
    assert "Scaled computes other weights from these" in reasons(beside(Scaled(64, 64)))["it"]
    assert "the forward of Asking is its own, and could not be tried: " in reasons(beside(Asking(64, 64)))["it"]


def test_a_model_that_is_one_convolution_is_pruned() -> None:
    assert is_two_four(torchsmith.sparsify(nn.Conv2d(64, 64, 3)).weight)


def test_attention_projections() -> None:
    together = nn.MultiheadAttention(64, 4)
    sparse = torchsmith.sparsify(nn.Sequential(together))
    assert [layer.name for layer in report(sparse).pruned] == ["0.in_proj_weight", "0.out_proj"]
    assert is_two_four(sparse[0].in_proj_weight) and is_two_four(sparse[0].out_proj.weight)
    apart = plan(nn.MultiheadAttention(64, 4, kdim=32, vdim=48))
    assert [layer.name for layer in apart.pruned] == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]


def test_a_weight_that_an_embedding_shares_is_left_alone() -> None:
    model = beside(nn.Linear(64, 128, bias=False))
    model["words"] = nn.Embedding(128, 64)
    model["words"].weight = model["it"].weight
    assert reasons(model)["it"] == "it shares its weights with words, which is left alone"


def test_a_weight_that_two_linear_layers_share_is_pruned_in_both() -> None:
    model = beside(nn.Linear(64, 64))
    model["it"].weight = model["other"].weight
    sparse = torchsmith.sparsify(model)
    assert sparse["it"].weight is sparse["other"].weight and is_two_four(sparse["it"].weight)
    assert "shares its weights with it" in reasons(beside(model), skip=["it.it"])["it.other"]


def test_skip_takes_parents_and_stars() -> None:
    assert set(reasons(Net(), skip=["body"]).values()) == {
        "the first convolution, which sees the input itself",
        "skip names it",
        "",
    }
    found = reasons(Net(), skip=["body.*"])
    assert found["body.0"] == found["body.2"] == "skip names it" and found["head"] == ""


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (["haed"], r"skip has 'haed', and Net has no such module; did you mean 'head'\?"),
        (["body.7"], r"did you mean 'body\.2' or 'body\.1' or 'body\.0'\?|did you mean 'body"),
        (["zzz"], r"skip has 'zzz', and Net has no such module; model\.named_modules\(\) lists them"),
        (["layer*"], r"skip has 'layer\*', and Net has no such module"),
        ([nn.Linear], "skip has <class"),
        ("head", r"skip='head'; it takes a collection of module names, such as \{'head', 'layer4\.\*\.conv1'\}"),
        (3, "skip=3; it takes a collection"),
    ],
    ids=["misspelt", "index", "unlike all", "pattern", "class", "string", "number"],
)
def test_skip_that_names_nothing(skip: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        torchsmith.sparsify(Net(), skip=skip)


def test_methods() -> None:
    with pytest.raises(InvalidOption, match="method='random'; it takes 'magnitude'"):
        torchsmith.sparsify(Net(), method="random")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "ReLU has no layer that can be pruned to 2:4: it has no convolution and no linear layer"),
        (
            nn.Linear(5, 5),
            r"Linear has no layer that can be pruned to 2:4: the model itself \(5 input features are no multiple of 16",
        ),
        (nn.Sequential(nn.Conv2d(64, 64, 3)), r"Sequential has no layer .*: 0 \(the first convolution"),
        (torch.jit.trace(nn.Linear(64, 64), torch.ones(1, 64)), "got a TopLevelTracedModule; prune it before torch.jit.script"),
        (torch.ones(4, 4), "takes an nn.Module with layers, and got a Tensor; pass the model itself"),
    ],
)
def test_models_without_a_layer_to_prune(model: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        torchsmith.sparsify(model)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers(bad: float) -> None:
    net = Net()
    with torch.no_grad():
        net.body[2].weight[3, 1, 0, 2] = bad
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidInput, match=r"the weights of body\.2 are not all finite numbers; load the trained weights again"):
        torchsmith.sparsify(net, inplace=True)
    assert torch.equal(before["body.0.weight"], net.body[0].weight)  # nothing was pruned before it was found
    assert is_two_four(torchsmith.sparsify(net, skip=["body.2"]).head.weight)


def test_the_report_of_another_model() -> None:
    with pytest.raises(InvalidInput, match=r"report\(\) takes what torchsmith\.sparsify\(\) returned; it got Net"):
        report(Net())


def test_out_of_torch_compile() -> None:
    net = Net()
    assert type(torchsmith.sparsify(torch.compile(net))) is Net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pruned", "layers"), [("resnet18", 20, 21), ("vit_tiny_patch16_224", 49, 50), ("efficientnet_b0", 42, 82)]
)
def test_whole_models(name: str, pruned: int, layers: int) -> None:
    model = timm.create_model(name).eval()
    sparse = torchsmith.sparsify(model)
    found = report(sparse)
    assert (len(found.pruned), len(found.layers)) == (pruned, layers)
    state = model.state_dict()
    changed = {key for key, tensor in sparse.state_dict().items() if not torch.equal(tensor, state[key])}
    assert changed == {f"{layer.name}.weight" for layer in found.pruned}
    for layer in found.pruned:
        dense, weight = model.get_submodule(layer.name).weight, sparse.get_submodule(layer.name).weight
        assert torch.equal(weight, torch.where(two_four_mask(dense), dense, 0))
        assert layer.kept is not None and 0.5 < layer.kept < 0.8
    x = torch.randn(1, 3, 224, 224)
    fast = torchsmith.compile(sparse, inputs=[x])
    with torch.no_grad():
        torch.testing.assert_close(fast(x), sparse(x), atol=1e-4, rtol=1e-3)
    (segment,) = torchsmith.explain(fast).segments
    assert (segment["two_four_weights"], segment["weights"]) == (
        pruned,
        sum(layer.kind in ("Conv2d", "Linear") for layer in found.layers),
    )
