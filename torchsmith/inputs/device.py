"""`Device`: where engines run, by Torch-TensorRT's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.errors import InvalidOption


@dataclass(frozen=True, init=False)
class Device:
    """A device to compile for: `Device("cuda:0")`, `Device("cpu")`, `Device(gpu_id=0)`, or `Device(torch.device("cuda"))`.

    torch: the `torch.device`. `allow_gpu_fallback` is taken for the sake of code written for Torch-TensorRT, where it
    concerns DLA cores; those are refused. Raises InvalidOption. Source: torch_tensorrt.Device.
    """

    torch: torch.device

    def __init__(
        self, spec: Any = None, *, gpu_id: int | None = None, dla_core: int | None = None, allow_gpu_fallback: bool = False
    ) -> None:
        if dla_core is not None or (isinstance(spec, str) and spec.lower().startswith("dla")):
            raise InvalidOption("DLA cores are not supported; name a GPU, as in Device('cuda:0'), or the CPU")
        if (spec is None) == (gpu_id is None):
            raise InvalidOption("Device takes either a name such as 'cuda:0' or 'cpu', or gpu_id=...")
        object.__setattr__(self, "torch", _device(spec if gpu_id is None else gpu_id))

    @staticmethod
    def of(device: Any) -> Device:
        """Read a Device, a `torch.device`, a name or a GPU's number."""
        return device if isinstance(device, Device) else Device(device)

    @property
    def type(self) -> str:
        return self.torch.type

    @property
    def gpu_id(self) -> int:
        """The GPU's number, 0 where none was said; -1 for the CPU."""
        return (self.torch.index or 0) if self.type == "cuda" else -1

    def __repr__(self) -> str:
        return f"Device({str(self.torch)!r})"


def _device(spec: Any) -> torch.device:
    if isinstance(spec, str) and spec.lower().partition(":")[0] == "gpu":
        spec = spec.lower().replace("gpu", "cuda", 1)
    try:
        device = torch.device("cuda", spec) if isinstance(spec, int) and not isinstance(spec, bool) else torch.device(spec)
    except (RuntimeError, TypeError) as error:
        raise InvalidOption(f"{spec!r} names no device; use 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidOption(f"device {str(device)!r} is not supported; torchsmith compiles for 'cpu' and 'cuda'")
    return device
