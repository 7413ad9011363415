"""What convolutions and poolings share: sizes per spatial dimension, counts of windows, inputs without a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, floordiv, simplify
from torchsmith.ir.graph import Value
from torchsmith.ops.reshape import reshaped

Ints = tuple[int, ...]
PerDimension = int | Sequence[int]


def each(value: PerDimension, rank: int) -> Ints:
    """One number per spatial dimension; a single one stands for all."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * rank if len(given) == 1 else given


def windows(size: Dim, kernel: int, stride: int, padding: int, dilation: int) -> Dim:
    """How many windows fit into `size` with `padding` (both sides together). Raises Unsupported where none does."""
    room = simplify(size + padding - dilation * (kernel - 1) - 1)
    if isinstance(room, int) and room < 0:
        raise Unsupported(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size} elements and {padding} of padding")
    return simplify(floordiv(room, stride) + 1)


def windows_ceil(size: Dim, kernel: int, stride: int, padding: int, dilation: int) -> Dim:
    """The same with a last window that may hang over, as long as it starts inside; padding: of one side."""
    count = simplify(windows(simplify(size + stride - 1), kernel, stride, 2 * padding, dilation))
    if isinstance(count, int) and isinstance(size, int):
        return count - 1 if (count - 1) * stride >= size + padding else count
    if padding + stride - 2 >= dilation * (kernel - 1):
        raise Unsupported(f"ceil_mode with stride {stride}, kernel {kernel} and padding {padding} over the symbolic size {size}")
    return count


def batched(x: Value, rank: int, apply: Callable[[Value], Value]) -> Value:
    """`apply` on x: (N, C, *spatial) of `rank` spatial dimensions; where x lacks the batch, with a batch of one."""
    if x.type.rank != rank + 1:
        return apply(x)
    y = apply(reshaped(x, (1, *x.type.shape)))
    return reshaped(y, y.type.shape[1:])
