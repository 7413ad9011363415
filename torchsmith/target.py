"""What an engine is built for."""

from __future__ import annotations

import functools
import os
import platform
import re
from dataclasses import dataclass
from typing import Any

from torchsmith.errors import InvalidOption

# The instruction sets that change which kernels a CPU engine picks.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Target:
    """A device to build for.

    device: "cpu" or "cuda". arch: the CPU's architecture ("x86_64", "aarch64") or the GPU's ("sm_90").
    features: CPU instruction sets that are present, in the order of `CPU_FEATURES`. chip: the vendor's name, for people.
    """

    device: str
    arch: str
    features: tuple[str, ...] = ()
    chip: str = ""

    def __str__(self) -> str:
        return f"{self.device} {self.arch}" + (f" ({self.chip})" if self.chip else "")

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "arch": self.arch, "features": list(self.features), "chip": self.chip}

    def runs_on(self, here: Target) -> bool:
        """Whether engines for this target run on a device: one of its architecture, or a younger GPU of the sm_8x family."""
        if self.device != "cuda" or here.device != "cuda":
            return (self.device, self.arch) == (here.device, here.arch)
        want, have = (int(t.arch.removeprefix("sm_")) for t in (self, here))
        # from sm_90 on, machine code uses instructions of one architecture alone
        return want == have or (want < 90 and want // 10 == have // 10 and want < have)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Target:
        return Target(data["device"], data["arch"], tuple(data["features"]), data["chip"])

    @staticmethod
    def parse(name: str) -> Target:
        """Read "cpu" (this machine's), or a GPU architecture such as "sm_90". Raises InvalidOption."""
        if name == "cpu":
            return this_cpu()
        if re.fullmatch(r"sm_\d{2,3}", name):
            return Target("cuda", name)
        raise InvalidOption(f"target {name!r} is not known; use 'cpu' or a GPU architecture such as 'sm_90'")


@functools.cache
def this_cpu() -> Target:
    """The CPU that this process runs on. On Linux its features are read from /proc/cpuinfo."""
    chip, flags = platform.processor() or platform.machine(), set[str]()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = (part.strip() for part in line.partition(":"))
                if key == "model name":
                    chip = value
                if key in ("flags", "Features"):
                    flags = set(value.split())
                    break
    return Target("cpu", platform.machine(), tuple(f for f in CPU_FEATURES if f in flags), chip)
