"""A model pruned to 2:4."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TypeVar

import torch
from torch import nn

from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.sparsity.masked import mask
from torchsmith.sparsity.plan import SparsityReport, pruning

Model = TypeVar("Model", bound=nn.Module)
METHODS = ("magnitude",)
_REPORT = "_torchsmith_sparsity"


def sparsify(
    model: Model, *, skip: Collection[str] = (), method: str = "magnitude", finetune: bool = False, inplace: bool = False
) -> Model:
    """Prune a model's weights to 2:4: of each four along the reduction dimension the two of largest magnitude stay.

    Pruned are linear layers (N, K), along K, two-dimensional convolutions without groups (K, C, kh, kw), along C, and the
    projections of nn.MultiheadAttention. Left alone are the first convolution, embeddings, grouped and depthwise convolutions,
    and what sparse tensor cores cannot take or gain nothing from: `torchsmith.sparsity.report` says why of each layer, and
    `torchsmith.sparsity.plan` says it before.

    skip: names of modules to leave alone, with all inside them, as in model.named_modules(); `*` stands for any characters.
    method: "magnitude" is the one there is. finetune: hold the zeros while the model trains; the masks are parametrizations
    (torch.nn.utils.parametrize), `torchsmith.sparsity.make_permanent` ends them, and `torchsmith.compile` takes the model either
    way. inplace: change the model instead of a copy. Parameters stay the same objects then, so that optimizers go on.

    Accuracy falls at first, and fine-tuning gets it back. Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    Raises InvalidInput for a model without a layer to prune, with every reason, or with weights that are not finite, and
    InvalidOption for a name in `skip` that the model does not have, naming the nearest.
    """
    if method not in METHODS:
        raise InvalidOption(f"method={method!r}; it takes {', '.join(map(repr, METHODS))}")
    model = getattr(model, "_orig_mod", model)  # out of its torch.compile wrapper
    found = pruning(model, skip)
    pruned = model if inplace else copy.deepcopy(model)
    for weight, keep in found.masks:
        module = pruned.get_submodule(weight.name)
        if finetune:
            mask(module, weight.attribute, keep)
        else:
            with torch.no_grad():
                getattr(module, weight.attribute).masked_fill_(~keep, 0)
    setattr(pruned, _REPORT, found.report)
    return pruned


def report(model: nn.Module) -> SparsityReport:
    """What `torchsmith.sparsify` did to this model, layer by layer. Raises InvalidInput where it did nothing."""
    found = getattr(model, _REPORT, None)
    if not isinstance(found, SparsityReport):
        raise InvalidInput(
            f"report() takes what torchsmith.sparsify() returned; it got {type(model).__name__}. "
            "torchsmith.sparsity.plan(model) says what pruning would do"
        )
    return found
