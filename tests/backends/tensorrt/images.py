"""What TensorRT's convolutions, pooling, resizing and sampling mean.

A resize finds positions by the lengths, as documented, also where scales are set; the cubic one repeats the border. Samples at a
grid are PyTorch's: TensorRT documents them in fewer words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.layers import dtype_of, given_weights, layer
from tests.backends.tensorrt.resampling import resized


def _sides(raw: Any, x: Tensor, window: Sequence[int]) -> tuple[list[int], list[int]]:
    mode, stride = raw.padding_mode.name, list(raw.stride_nd)
    if mode.startswith("EXPLICIT"):
        return list(raw.pre_padding), list(raw.post_padding)
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], stride, window, strict=True)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value)


@layer("CONVOLUTION")
def convolution(raw: Any, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    size, groups, dilation = list(raw.kernel_size_nd), raw.num_groups, list(raw.dilation_nd)
    weight, added = _weights(raw, x, kernel, bias)
    weight = weight.reshape(raw.num_output_maps, -1, *size)
    before, after = _sides(raw, x, [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)])
    return torch.convolution(
        _padded(x, before, after), weight, added, list(raw.stride_nd), [0] * len(size), dilation, False, [0] * len(size), groups
    )


@layer("DECONVOLUTION")
def deconvolution(raw: Any, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The whole of it, cut by the padding."""
    size, rank = list(raw.kernel_size_nd), x.dim() - 2
    assert raw.padding_mode.name == "EXPLICIT_ROUND_DOWN", f"a deconvolution with {raw.padding_mode}"
    assert min(*raw.pre_padding, *raw.post_padding) >= 0, "TensorRT takes no negative padding"
    weight, added = _weights(raw, x, kernel, bias)
    weight = weight.reshape(x.shape[1], -1, *size)
    none = [0] * rank
    found = torch.convolution(x, weight, None, list(raw.stride_nd), none, list(raw.dilation_nd), True, none, raw.num_groups)
    cut = _padded(found, [-n for n in raw.pre_padding], [-n for n in raw.post_padding])
    return cut if added is None else cut + added.reshape(-1, *[1] * rank)


def _weights(raw: Any, x: Tensor, kernel: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias: inputs, or given as the layer was added. 16-bit ones are of x's type, which is wide here."""
    weight, added = given_weights(raw.kernel) if kernel is None else kernel, given_weights(raw.bias) if bias is None else bias
    assert weight is not None
    declared = dtype_of(raw.get_input(0).dtype)
    for tensor, given in ((weight, kernel), (added, bias)):
        assert tensor is None or tensor.dtype == (declared if given is None else x.dtype), (
            f"weights of {tensor.dtype}, x {declared}"
        )
    return weight.to(x.dtype), None if added is None else added.to(x.dtype)


@layer("POOLING")
def pooling(raw: Any, x: Tensor) -> Tensor:
    window, stride = list(raw.window_size_nd), list(raw.stride_nd)
    before, after = _sides(raw, x, window)
    up = raw.padding_mode.name == "EXPLICIT_ROUND_UP"
    # windows past the padded end, which rounding up asks for, see nothing there
    more = [-(n + b + a - k) % s if up else 0 for n, b, a, k, s in zip(x.shape[2:], before, after, window, stride, strict=True)]
    kind = raw.type.name
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    axes = list(range(x.dim(), x.dim() + len(window)))

    def windows(t: Tensor) -> Tensor:
        for axis, (k, s) in enumerate(zip(window, stride, strict=True)):
            t = t.unfold(2 + axis, k, s)
        return t

    if kind == "MAX":
        sides = [b + m for b, m in zip(after, more, strict=True)]
        return windows(_padded(x, before, sides, lowest)).amax(axes)
    assert kind == "AVERAGE" and x.is_floating_point(), f"{kind} pooling of {x.dtype}"
    counted = torch.ones_like(x)
    if not raw.average_count_excludes_padding:
        counted = _padded(counted, before, after, 1.0)
        sums = windows(_padded(_padded(x, before, after), [0] * len(more), more)).sum(axes)
        return sums / windows(_padded(counted, [0] * len(more), more)).sum(axes)
    sides = [b + m for b, m in zip(after, more, strict=True)]
    return windows(_padded(x, before, sides)).sum(axes) / windows(_padded(counted, before, sides)).sum(axes)


@layer("PADDING")
def padding(raw: Any, x: Tensor) -> Tensor:
    return _padded(x, list(raw.pre_padding_nd), list(raw.post_padding_nd))


@layer("RESIZE")
def resize(raw: Any, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    if sizes is not None:
        wanted = sizes.tolist()
    else:
        scales = list(raw.scales)
        wanted = [int(n * s) for n, s in zip(x.shape, scales, strict=True)] if scales else list(raw.shape)
    return resized(raw, x, wanted)


@layer("GRID_SAMPLE")
def grid_sample(raw: Any, x: Tensor, grid: Tensor) -> Tensor:
    assert raw.get_input(0).dtype == raw.get_input(1).dtype and x.dim() == grid.dim() == 4, f"{x.dtype} at {grid.dtype}"
    mode = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}[raw.interpolation_mode.name]
    outside = {"CLAMP": "border", "FILL": "zeros", "REFLECT": "reflection"}[raw.sample_mode.name]
    return F.grid_sample(x, grid, mode=mode, padding_mode=outside, align_corners=raw.align_corners)
