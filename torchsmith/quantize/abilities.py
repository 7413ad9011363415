"""What a backend's engines do of int8 and fp8: calibration and the choice of precisions go by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torchsmith.quantize.calibration import Calibration, Range
from torchsmith.target import Target


@dataclass(frozen=True)
class Product:
    """A layer that multiplies with a weight, as far as the choice of a kernel goes by it.

    dims: of the pictures that a convolution takes; 0 for linear layers and products of matrices, of which the rest says nothing.
    channels, filters: of the input and of the result, of all groups together. input_moved, weight_moved: their integers have zero
    points, other than those that make unsigned ones signed in the weight.
    """

    dims: int = 0
    transposed: bool = False
    groups: int = 1
    channels: int = 0
    filters: int = 0
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    input_moved: bool = False
    weight_moved: bool = False

    @property
    def depthwise(self) -> bool:
        return not self.transposed and self.groups > 1 and self.groups == self.channels == self.filters


def never(product: Product) -> str:
    """No layer is in floats: what `Int8Abilities.in_floats` is where engines have int8 kernels for all."""
    return ""


@dataclass(frozen=True)
class Int8Abilities:
    """mixes_floats: engines may have both a smaller float and float32 beside int8.

    gated: a 1×1 convolution of what a squeeze-and-excite's gate scales is worth computing in int8. Where not, what the gate scales
    is quantized instead: an engine that scales as its product loads then reads int8, and nothing writes what is scaled.
    pixels: so is a convolution of pixels, as far as it sums up enough of them.
    adds: a layer's kernel adds a residual to its own result. That result never stands in memory, and is not rounded for the sum.
    unsigned: numbers that are never negative may take 256 steps from 0, and not 127.
    contested: floats may be faster, as where a call is mostly kernels that wait for one another: both are timed where they can be.
    in_floats: why engines compute a layer of int8 pairs in floats nevertheless; empty where they do not. Calibration leaves it be.
    fp8_since: the least compute capability, as 89 for 8.9, whose GPUs get kernels of float8_e4m3fn; 0 where any device computes
    what it means, None where there is no such engine.
    """

    mixes_floats: bool = True
    gated: bool = True
    pixels: bool = False
    adds: bool = False
    unsigned: bool = True
    contested: bool = False
    in_floats: Callable[[Product], str] = never
    fp8_since: int | None = None

    def computes_fp8(self, target: Target) -> bool:
        if self.fp8_since is None or target.device != "cuda":
            return self.fp8_since == 0
        return int(target.arch.removeprefix("sm_")) >= self.fp8_since

    def ranges(self, calibration: Calibration) -> Calibration:
        """The calibration with ranges that these engines have."""
        if self.unsigned:
            return calibration
        ranges: Mapping[str, Range] = {
            name: replace(found, least=min(found.least, -found.threshold)) for name, found in calibration.ranges.items()
        }
        return replace(calibration, ranges=ranges)


ALL = Int8Abilities(fp8_since=0)
