"""What everything that was compiled has in common: it is for inference, on one device, in one precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from torchsmith.errors import TorchsmithError

Self = TypeVar("Self", bound="FinishedModule")


class FinishedModule(nn.Module):
    """A module that stays what it was compiled to be. report: what became of the model, as plain data."""

    report: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        raise NotImplementedError

    def train(self: Self, mode: bool = True) -> Self:
        """Only `train(False)`, which is what `eval()` calls. Raises TorchsmithError."""
        if mode:
            raise TorchsmithError(
                "a compiled module is for inference and cannot be trained; train the original model and compile it again"
            )
        return self

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.cuda()` and `.half()` come down to: allowed where it changes nothing. Raises TorchsmithError."""
        absent = self.device.type == "cuda" and not torch.cuda.is_available()  # of a module that was built for elsewhere
        before = torch.empty(0, device="cpu" if absent else self.device)
        after = fn(before)
        if after.device.type != before.device.type:
            raise TorchsmithError(
                f"this module was compiled for {before.device} and cannot move to {after.device}; "
                f"compile the original model with device={str(after.device)!r}"
            )
        if after.dtype != before.dtype:
            raise TorchsmithError(
                f"the precision of a compiled module is fixed; compile the original model with enabled_precisions={{{after.dtype}}}"
            )
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises TorchsmithError: weights are compiled in."""
        raise TorchsmithError(
            "the weights of a compiled module are built into its engines; load them into the original model and compile it again"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TorchsmithError(
            "a compiled module cannot be pickled; write it with torchsmith.save(module, path), read it with torchsmith.load(path)"
        )
