"""The layers of a model that have matrices of weights, and what speaks against pruning one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from torchsmith.sparsity.masked import is_masked

# What the instructions of the sparse tensor cores take for fp16 (PTX ISA, mma.sp.m16n8k32; cuSPARSELt's table of alignments).
MULTIPLE = 16  # channels or features of the reduction
SMALLEST_REDUCTION = 32  # fewer are one dense instruction already
SMALLEST_ROWS = 16  # outputs in one tile

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WITH_WEIGHTS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of weights in the module that has it. name: the module's path. attribute: the tensor's name in it."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def label(self) -> str:
        several = isinstance(self.module, nn.MultiheadAttention)
        return f"{self.name}.{self.attribute}".lstrip(".") if several else self.name

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def tensor(self) -> Tensor:
        tensor = getattr(self.module, self.attribute)
        assert isinstance(tensor, Tensor), f"{self.label} is {type(tensor).__name__}"
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return () if nn.parameter.is_lazy(self.tensor) else tuple(self.tensor.shape)


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """Every layer's weights, in the model's order, a layer that is used twice once."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield from (Weight(name, module, a) for a in _PROJECTIONS if getattr(module, a) is not None)
        elif isinstance(module, nn.RNNBase):
            yield Weight(name, module, "weight_ih_l0")
        elif isinstance(module, nn.RNNCellBase):
            yield Weight(name, module, "weight_ih")
        elif isinstance(module, _WITH_WEIGHTS):
            yield Weight(name, module, "weight")


def reason_against(model: nn.Module, weights: Sequence[Weight], skipped: Collection[str]) -> list[str]:
    """For each of the weights why they are left alone; "" for those to prune."""
    first = next((w.module for w in weights if w.name and isinstance(w.module, _ConvNd)), None)
    reasons = [
        "skip names it"
        if w.name in skipped
        else "the first convolution, which sees the input itself"
        if w.module is first
        else against_kind(w.module) or against_tensor(w) or against_shape(w) or against_forward(w)
        for w in weights
    ]
    return [reason or shared for reason, shared in zip(reasons, _against_sharing(model, weights, reasons), strict=True)]


def against_kind(layer: nn.Module) -> str:
    if isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
        return ""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding is looked up, not multiplied"
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution"
    if isinstance(layer, nn.Conv2d):
        if layer.groups == 1:
            return ""
        return "a depthwise convolution" if layer.groups == layer.in_channels else f"a convolution in {layer.groups} groups"
    if isinstance(layer, _ConvNd):
        return f"a convolution in {len(layer.kernel_size)} dimension{'s' * (len(layer.kernel_size) > 1)}, not two"
    return "neither a convolution nor a linear layer"


def against_tensor(weight: Weight) -> str:
    layer, attribute = weight.module, weight.attribute
    if is_masked(layer, attribute):
        return "masked for fine-tuning already; torchsmith.sparsity.make_permanent ends that"
    tensor = layer._parameters.get(attribute)
    if parametrize.is_parametrized(layer, attribute) or tensor is None:
        return "its weights are computed at each call (a parametrization, weight norm or a mask); make that permanent first"
    if nn.parameter.is_lazy(tensor):
        return "its weights have no shape yet; call the model once"
    if type(tensor) is not nn.Parameter:
        return f"its weights are a {type(tensor).__name__}, not a plain tensor"
    if tensor.dtype not in DTYPES:
        return f"its weights are {str(tensor.dtype).removeprefix('torch.')}, not floating"
    if tensor.is_meta:
        return "its weights are on the meta device, without values; load them first"
    return ""


def against_shape(weight: Weight) -> str:
    rows, channels, *kernel = weight.tensor.shape
    reduction = channels * torch.Size(kernel).numel()
    noun = "input channels" if kernel else "input features"
    if channels % MULTIPLE:
        return f"{channels} {noun} are no multiple of {MULTIPLE}, which sparse tensor cores take"
    if reduction < SMALLEST_REDUCTION:
        return f"it sums over {reduction} values only, and sparse tensor cores take {SMALLEST_REDUCTION} at a time"
    if rows < SMALLEST_ROWS:
        return f"it has {rows} outputs only, and a tile of the sparse tensor cores has {SMALLEST_ROWS}"
    return ""


def against_forward(weight: Weight) -> str:
    """A layer of the user's own class may compute the weights that it uses, so that zeros do not stay zeros: it is tried."""
    layer, kind = weight.module, type(weight.module)
    if isinstance(layer, nn.Conv2d):
        if all(getattr(kind, method) is getattr(nn.Conv2d, method) for method in ("forward", "_conv_forward")):
            return ""
        extent = [d * (k - 1) + 3 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    elif isinstance(layer, nn.Linear) and kind.forward is not nn.Linear.forward:
        extent = []
    else:
        return ""
    try:
        ignored = _ignores_zeros(layer, extent)
    except Exception as error:  # the user's own code may raise anything
        return f"the forward of {kind.__name__} is its own, and could not be tried: {error}"
    if ignored:
        return ""
    return f"{kind.__name__} computes other weights from these (standardised, say), and zeros do not stay zeros"


def _ignores_zeros(layer: nn.Module, extent: list[int]) -> bool:
    """Whether an input whose weights are all zero does not count."""
    trial = copy.deepcopy(layer).eval()
    weight = trial.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        # no zeros, no mean of zero: standardised, the first would not stay zeros
        weight.copy_(torch.linspace(0.5, 1.5, weight.numel()).reshape(weight.shape))
        weight[:, 0] = 0
        x = torch.linspace(-1, 1, weight.shape[1] * torch.Size(extent).numel()).reshape(1, weight.shape[1], *extent).to(weight)
        other = x.clone()
        other[:, 0] += 1
        return torch.equal(trial(x), trial(other))


def _against_sharing(model: nn.Module, weights: Sequence[Weight], reasons: Sequence[str]) -> list[str]:
    """A tensor that several modules hold is pruned only where it may be in all of them."""
    holders: dict[int, list[tuple[nn.Module, str, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                holders[id(tensor)].append((module, attribute, name))
    accepted = {(w.module, w.attribute) for w, reason in zip(weights, reasons, strict=True) if not reason}
    found = []
    for weight, reason in zip(weights, reasons, strict=True):
        others = [] if reason else [name for m, a, name in holders[id(weight.tensor)] if (m, a) not in accepted]
        found.append(f"it shares its weights with {others[0]}, which is left alone" if others else "")
    return found
