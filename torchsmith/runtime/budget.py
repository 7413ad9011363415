"""Building until what was built keeps the accuracy budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from torchsmith.quantize.batches import Batch
from torchsmith.quantize.post_training import Quantized
from torchsmith.runtime.writes import written

if TYPE_CHECKING:
    from torchsmith.runtime.compiled import CompiledModule


def within_budget(quantized: Quantized, finish: Callable[[Quantized], CompiledModule]) -> CompiledModule:
    """What `finish` makes of a quantized program. With an accuracy budget it is run over the calibration data, and made again
    until it is the fastest that keeps the budget.

    The report then says under "accuracy" what was chosen and measured. Where the module cannot run on this machine, the simulated
    figure stands there. Raises BudgetExceeded.
    """
    module = best = finish(quantized)
    if (search := quantized.budgeted) is None:
        return module
    if module.missing:
        module.report["accuracy"] = search.record(None)
        return module
    while True:
        measured = search.loss(_caller(module, search.model.program.call_spec.in_spec))
        if search.learn(measured):
            best = module
            best.report["accuracy"] = search.record(measured)
        if not search.goes_on():
            return best
        module = finish(quantized.again())


def _caller(module: CompiledModule, spec: pytree.TreeSpec | None) -> Callable[[Batch], Sequence[Any]]:
    """Calls of the module that leave its state and the batch as they are, with flat outputs. spec: how the inputs nest."""
    assert spec is not None
    keeps_state = bool(written(module.plan))

    def run(batch: Batch) -> Sequence[Any]:
        inputs = [v.to(module.device, copy=True) if isinstance(v, Tensor) else v for v in batch.inputs]
        args, kwargs = pytree.tree_unflatten(inputs, spec)
        return pytree.tree_leaves((copy.deepcopy(module) if keeps_state else module)(*args, **kwargs))

    return run
