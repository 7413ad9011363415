"""What TensorRT's layers mean that move elements about."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.layers import layer


@layer("SHAPE")
def shape(raw: Any, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


@layer("SHUFFLE")
def shuffle(raw: Any, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    x = x.permute(tuple(raw.first_transpose)[: x.dim()])
    wanted = _dims(raw.reshape_dims) if sizes is None else sizes.tolist()
    if wanted is not None:
        if raw.zero_is_placeholder:
            wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
        x = x.reshape(wanted)
    return x.permute(tuple(raw.second_transpose)[: x.dim()])


def _dims(found: Any) -> list[int] | None:
    """Dims that may not have been set."""
    return None if found is None or len(found) < 0 else list(found)


@layer("SQUEEZE")
def squeeze(raw: Any, x: Tensor, axes: Tensor) -> Tensor:
    assert all(x.shape[axis] == 1 for axis in axes.tolist())
    return x.squeeze(tuple(axes.tolist()))


@layer("UNSQUEEZE")
def unsqueeze(raw: Any, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


@layer("CONCATENATION")
def concatenation(raw: Any, *parts: Tensor) -> Tensor:
    assert len({t.dtype for t in parts}) == 1 and len({t.dim() for t in parts}) == 1
    return torch.cat(parts, raw.axis)


@layer("SLICE")
def slice_(raw: Any, x: Tensor, *given: Tensor | None) -> Tensor:
    start, size, stride, value, axes = [*given, None, None, None, None, None][:5]
    starts = list(raw.start) if start is None else start.tolist()
    sizes = list(raw.shape) if size is None else size.tolist()
    strides = list(raw.stride) if stride is None else stride.tolist()
    which = axes.tolist() if axes is not None else _dims(raw.axes) or list(range(x.dim()))
    assert len(starts) == len(sizes) == len(strides) == len(which), (
        f"a slice of {tuple(x.shape)}: {starts} {sizes} {strides} {which}"
    )
    filled = torch.zeros((), dtype=x.dtype) if value is None else value.reshape(())
    assert filled.dtype == x.dtype
    for axis, first, count, step in zip(which, starts, sizes, strides, strict=True):
        at = first + step * torch.arange(count)
        length, outside = x.shape[axis], (at < 0) | (at >= x.shape[axis])
        if raw.mode.name == "STRICT_BOUNDS":
            assert not outside.any(), f"a slice of {tuple(x.shape)} along {axis}: {first}, {count} times, by {step}"
        elif raw.mode.name == "WRAP":
            at = at % length
        elif raw.mode.name == "REFLECT":
            period = max(2 * (length - 1), 1)
            at = (length - 1) - ((at % period) - (length - 1)).abs()
        else:
            at = at.clamp(0, max(length - 1, 0))
        x = x.index_select(axis, at) if length else x.new_empty((*x.shape[:axis], count, *x.shape[axis + 1 :]))
        if raw.mode.name == "FILL":
            x = torch.where(outside.reshape(-1, *[1] * (x.dim() - axis - 1)), filled, x)
    return x


# ---- by index ---------------------------------------------------------------------------------------------------------------


def _inside(index: Tensor, size: int) -> Tensor:
    assert index.dtype in (torch.int32, torch.int64), f"an index of {index.dtype}"
    assert not index.numel() or (int(index.min()) >= 0 and int(index.max()) < size), f"indices out of 0 … {size - 1}"
    return index.long()


@layer("GATHER")
def gather(raw: Any, x: Tensor, index: Tensor) -> Tensor:
    name, together = raw.mode.name, raw.num_elementwise_dims
    if name == "ELEMENT":
        return x.gather(raw.axis, _inside(index, x.shape[raw.axis]))
    if name == "ND":
        return _by_tuples(x, index, together)
    if together == 0:
        flat = x.index_select(raw.axis, _inside(index, x.shape[raw.axis]).reshape(-1))
        return flat.reshape(*x.shape[: raw.axis], *index.shape, *x.shape[raw.axis + 1 :])
    rows = [
        r.index_select(raw.axis - 1, _inside(i, x.shape[raw.axis]).reshape(-1)).unflatten(raw.axis - 1, i.shape)
        for r, i in zip(x, index, strict=True)
    ]
    return torch.stack(rows)


def _by_tuples(x: Tensor, index: Tensor, together: int) -> Tensor:
    if together:
        return torch.stack([_by_tuples(a, i, together - 1) for a, i in zip(x, index, strict=True)])
    return x[tuple(_inside(index[..., d], x.shape[d]) for d in range(index.shape[-1]))]


@layer("SCATTER")
def scatter(raw: Any, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Which of several values for one place wins is not said, so that there are to be none (or equal ones)."""
    assert x.dtype == values.dtype and x.dtype != torch.bool, f"a scatter of {values.dtype} into {x.dtype}"
    if raw.mode.name == "ELEMENT":
        where = _inside(index, x.shape[raw.axis])
        found = x.scatter(raw.axis, where, values)
        assert torch.equal(found.gather(raw.axis, where), values), "a scatter of several values to one place"
        return found
    places = tuple(_inside(index[..., d], x.shape[d]) for d in range(index.shape[-1]))
    found = x.index_put(places, values)
    assert torch.equal(found[places], values), "a scatter of several values to one place"
    return found


@layer("ONE_HOT")
def one_hot(raw: Any, index: Tensor, values: Tensor, depth: Tensor) -> Tensor:
    hot = F.one_hot(_inside(index, int(depth)), int(depth)).bool()
    return torch.where(hot.movedim(-1, raw.axis), values[1], values[0])
