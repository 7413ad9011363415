"""Masks that hold while a model trains."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchsmith.errors import InvalidInput

Model = TypeVar("Model", bound=nn.Module)


class Masked(nn.Module):
    """A parametrization: weights where the mask is True, zeros elsewhere, whatever is assigned or learned.

    mask: booleans of the weights' shape; a buffer, so that it is in the state_dict and moves with the model.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        # not a product: -0.0 and the NaN of 0 * inf are no zeros to store
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self.forward(weight)


def is_masked(module: nn.Module, attribute: str) -> bool:
    return parametrize.is_parametrized(module, attribute) and any(isinstance(p, Masked) for p in _list(module, attribute))


def mask(module: nn.Module, attribute: str, keep: Tensor) -> None:
    """Hold a parameter to its mask from now on. It stays the same object, so that an optimizer that has it goes on."""
    _own_class(module)
    parametrize.register_parametrization(module, attribute, Masked(keep))


def make_permanent(model: Model, *, inplace: bool = False) -> Model:
    """End masked fine-tuning: the weights stay 2:4, and are plain parameters again, under their old names in the state_dict.

    model: what `torchsmith.sparsify(..., finetune=True)` returned. inplace: change it instead of a copy.
    Raises InvalidInput where no layer is masked, or one has other parametrizations beside its mask.
    """
    masked = [(name, attribute) for name, module in model.named_modules() for attribute in _masked(module)]
    if not masked:
        raise InvalidInput(f"{type(model).__name__} has no masked layer; torchsmith.sparsify(model, finetune=True) masks them")
    for name, attribute in masked:
        if len(_list(model.get_submodule(name), attribute)) > 1:
            raise InvalidInput(
                f"{name}.{attribute} has other parametrizations beside its mask; "
                "remove them with torch.nn.utils.parametrize.remove_parametrizations first"
            )
    model = model if inplace else copy.deepcopy(model)
    for name, attribute in masked:
        module = model.get_submodule(name)
        _own_class(module)
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    return model


def _masked(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict), f"{type(lists)}"
    return [attribute for attribute in lists if is_masked(module, attribute)]


def _list(module: nn.Module, attribute: str) -> parametrize.ParametrizationList:
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict), f"{type(lists)}"
    found = lists[attribute]
    assert isinstance(found, parametrize.ParametrizationList), f"{type(found)}"
    return found


def _own_class(module: nn.Module) -> None:
    """A parametrized module has a class of its own, which its deep copies share: a change to one would break the others."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
