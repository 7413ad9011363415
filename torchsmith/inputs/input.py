"""`Input`: what a user says about one tensor input, by Torch-TensorRT's names."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.dtypes import dtype as element_type
from torchsmith.errors import InvalidInput

_FORMATS: dict[torch.memory_format, tuple[tuple[str, ...], int | None]] = {  # names, and the rank that the format needs
    torch.contiguous_format: (("contiguous_format", "contiguous", "linear"), None),
    torch.channels_last: (("channels_last",), 4),
    torch.channels_last_3d: (("channels_last_3d",), 5),
}


@dataclass(frozen=True)
class Axis:
    """A dimension whose size may change from call to call: min <= opt <= max, where `max` None means without limit.

    dim: the `torch.export.Dim` that the user gave; None for one that came from `min_shape` and `max_shape`.
    """

    min: int
    opt: int
    max: int | None
    dim: Any = None

    @staticmethod
    def of(dim: Any, opt: int | None = None) -> Axis:
        """Read a `Dim`, or a hint such as `Dim.AUTO`. Without an `opt`, the largest size, or 2 where there is no limit."""
        least, most = dim.min or 0, dim.max
        if not hasattr(dim, "__name__"):
            least = max(least, 2)  # a hint promises nothing below 2: export takes 0 and 1 for special
        most = int(most) if most is not None and most < 2**62 else None  # torch's infinity compares, and is no int
        if opt is None:
            opt = max(least, 2) if most is None else most
        return Axis(int(least), opt, most, dim)

    @property
    def traced(self) -> int:
        """The size to trace with: `opt`, or another one in range where that is 0 or 1, which export takes for fixed."""
        size = self.opt if self.opt > 1 else max(2, self.min)
        return size if self.max is None else min(size, self.max)

    def size(self, field: str) -> int:
        """The size for "min", "opt", "max" (`opt` where there is no limit), "traced" or "least" (`min`, but not 0)."""
        if field == "least":
            return max(self.min, 1)
        size = getattr(self, field)
        return self.opt if size is None else int(size)

    def __str__(self) -> str:
        name = f"{self.dim.__name__}=" if hasattr(self.dim, "__name__") else ""
        return f"{name}{self.min}..{'' if self.max is None else self.max}"


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Input:
    """One tensor input: its shape, element type and memory format.

    >>> Input((1, 3, 224, 224), dtype=torch.half)
    Input((1, 3, 224, 224), f16)
    >>> Input(min_shape=(1, 3, 224, 224), opt_shape=(8, 3, 224, 224), max_shape=(16, 3, 224, 224))
    Input((1..16, 3, 224, 224), f32)
    >>> Input((torch.export.Dim("batch", min=1, max=16), 3, 224, 224))
    Input((batch=1..16, 3, 224, 224), f32)

    shape: sizes, where a `torch.export.Dim` stands for one that may change; the same `Dim` in two inputs ties them.
    `Dim.DYNAMIC` and `Dim.AUTO` leave the range to the model; they take sizes from 2 up.
    min_shape, max_shape: the range of every size, both included; equal ones are fixed. Inputs with the same range in dimension 0
    share one batch size; other dimensions are tied where the model needs them equal.
    opt_shape: the sizes to be fastest at. The default is the largest, and 2 where there is no limit.
    dtype: a `torch.dtype`, a `torchsmith.dtype` or its name. format (or memory_format): a `torch.memory_format` or its name.
    tensor_domain: [low, high) of the values that examples are made of.
    torch_tensor: an example to use instead of a random one. name: what messages call this input.

    Raises InvalidInput or InvalidOption, in a sentence. Source: torch_tensorrt.Input.
    """

    dims: tuple[int | Axis, ...]
    dtype: element_type
    format: torch.memory_format
    tensor_domain: tuple[float, float]
    torch_tensor: torch.Tensor | None
    name: str

    def __init__(
        self,
        shape: Sequence[Any] | None = None,
        *,
        min_shape: Sequence[int] | None = None,
        opt_shape: Sequence[int] | None = None,
        max_shape: Sequence[int] | None = None,
        dtype: Any = torch.float32,
        format: Any = None,
        memory_format: Any = None,
        tensor_domain: tuple[float, float] | None = None,
        torch_tensor: torch.Tensor | None = None,
        name: str = "",
    ) -> None:
        if shape is not None and (min_shape is not None or max_shape is not None):
            raise InvalidInput("Input takes either a shape, or min_shape with max_shape, not both")
        if format is not None and memory_format is not None and _format(format) != _format(memory_format):
            raise InvalidInput(
                f"Input has format={format} and memory_format={memory_format}, which name one thing; give one of them"
            )
        dims = _dims(shape, opt_shape) if shape is not None else _ranges(min_shape, opt_shape, max_shape)
        layout = _format(format if format is not None else memory_format)
        rank = _FORMATS[layout][1]
        if rank is not None and len(dims) != rank:
            raise InvalidInput(f"format={layout} needs {rank} dimensions, and the shape has {len(dims)}: {_text(dims)}")
        set_field = object.__setattr__  # the way to fill a frozen dataclass that has a constructor of its own
        kind = element_type.of(dtype)
        if kind is element_type.f8:
            raise InvalidInput(f"Input(dtype={dtype}); engines compute in fp8 inside, and take floats of more bits: give those")
        set_field(self, "dims", dims)
        set_field(self, "dtype", kind)
        set_field(self, "format", layout)
        set_field(self, "tensor_domain", _domain(tensor_domain))
        set_field(self, "torch_tensor", torch_tensor)
        set_field(self, "name", str(name))
        if torch_tensor is not None:
            self._check_example(torch_tensor)

    @staticmethod
    def from_tensor(tensor: torch.Tensor, disable_memory_format_check: bool = False) -> Input:
        """The shape, dtype and format of `tensor`, which becomes the example. Raises InvalidInput for a format with gaps."""
        if not isinstance(tensor, torch.Tensor):
            raise InvalidInput(f"Input.from_tensor takes a tensor, and got {type(tensor).__name__}")
        fits = (f for f, (_, rank) in _FORMATS.items() if rank in (None, tensor.dim()) and tensor.is_contiguous(memory_format=f))
        layout = next(fits, torch.contiguous_format if disable_memory_format_check else None)
        if layout is None:
            raise InvalidInput(
                f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is neither contiguous nor channels-last; "
                "pass tensor.contiguous(), or disable_memory_format_check=True"
            )
        return Input(tensor.shape, dtype=tensor.dtype, format=layout, torch_tensor=tensor)

    @staticmethod
    def from_tensors(tensors: Sequence[torch.Tensor], disable_memory_format_check: bool = False) -> list[Input]:
        """`from_tensor` of each."""
        return [Input.from_tensor(t, disable_memory_format_check) for t in tensors]

    @property
    def is_dynamic(self) -> bool:
        return any(isinstance(d, Axis) for d in self.dims)

    @property
    def shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """The sizes; for a dynamic input a dict of min_shape, opt_shape and max_shape, as Torch-TensorRT has it."""
        if not self.is_dynamic:
            return self.sizes("opt")
        return {f"{field}_shape": self.sizes(field) for field in ("min", "opt", "max")}

    def sizes(self, field: str) -> tuple[int, ...]:
        """The shape at "min", "opt", "max" or "traced" (the one that is safe to trace with)."""
        return tuple(d.size(field) if isinstance(d, Axis) else d for d in self.dims)

    def example_tensor(self, optimization_profile_field: str | None = None, *, device: torch.device | None = None) -> torch.Tensor:
        """A tensor that fits: random in `tensor_domain`, the same at each call, without touching the global generator.

        optimization_profile_field: "min_shape", "opt_shape" (the default) or "max_shape". Integers are drawn from the domain
        too, [0, 2) unless it says otherwise, so that they are safe as indices.
        """
        field = (optimization_profile_field or "opt_shape").removesuffix("_shape")
        if field not in ("min", "opt", "max"):
            raise InvalidInput(
                f"optimization_profile_field={optimization_profile_field!r}; it takes min_shape, opt_shape or max_shape"
            )
        return self.example(self.sizes(field), device)

    def example(self, shape: tuple[int, ...], device: torch.device | None = None, seed: int = 0) -> torch.Tensor:
        """A random tensor of this dtype, format and domain, of any shape; `torch_tensor` where it has that shape."""
        if self.torch_tensor is not None and tuple(self.torch_tensor.shape) == shape:
            return self.torch_tensor.to(device=device)
        generator = torch.Generator().manual_seed(seed)
        low, high = self.tensor_domain
        kind = self.dtype.torch
        if kind.is_floating_point:
            tensor = torch.rand(shape, generator=generator).mul_(high - low).add_(low).to(kind)
        elif kind is torch.bool:
            tensor = torch.randint(0, 2, shape, generator=generator, dtype=torch.int64).bool()
        else:
            whole = int(low), max(int(high), int(low) + 1)
            tensor = torch.randint(*whole, shape, generator=generator, dtype=torch.int64).to(kind)
        return tensor.to(device=device, memory_format=self.format)

    def _check_example(self, tensor: torch.Tensor) -> None:
        fits = len(self.dims) == tensor.dim() and all(
            size == d if isinstance(d, int) else d.min <= size and (d.max is None or size <= d.max)
            for d, size in zip(self.dims, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype is not self.dtype.torch:
            raise InvalidInput(f"torch_tensor has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, which does not fit {self}")

    def __repr__(self) -> str:
        layout = "" if self.format is torch.contiguous_format else f", {_FORMATS[self.format][0][0]}"
        return f"Input({_text(self.dims)}, {self.dtype.name}{layout})"


def _dims(shape: Any, opt_shape: Any) -> tuple[int | Axis, ...]:
    """Read a shape whose entries are sizes and Dims."""
    from torch.export import Dim

    sizes = _entries("shape", shape)
    opts = [None] * len(sizes) if opt_shape is None else _shape("opt_shape", opt_shape)
    if len(opts) != len(sizes):
        raise InvalidInput(f"shape has {len(sizes)} dimensions and opt_shape {len(opts)}: {shape} and {opt_shape}")
    dims: list[int | Axis] = []
    for i, (size, opt) in enumerate(zip(sizes, opts, strict=True)):
        if not isinstance(size, (Dim, type(Dim.AUTO))):
            dims.append(_size("shape", i, size))
            if opt not in (None, dims[i]):
                raise InvalidInput(f"dimension {i} is {size} in shape and {opt} in opt_shape; a Dim in shape makes it dynamic")
            continue
        if size is Dim.STATIC or "STATIC" in repr(getattr(size, "type", "")):
            raise InvalidInput(f"dimension {i} of shape is Dim.STATIC, which says no size; write the number")
        axis = Axis.of(size, opt)
        if not axis.min <= axis.opt <= (axis.opt if axis.max is None else axis.max):
            raise InvalidInput(f"dimension {i}: opt_shape has {opt}, which is outside of {axis}")
        _check_traceable(i, axis)
        dims.append(axis)
    if opt_shape is not None and not any(isinstance(d, Axis) for d in dims):
        raise InvalidInput(f"shape={shape} is fixed, so opt_shape says nothing; give min_shape and max_shape, or a Dim in shape")
    return tuple(dims)


def _ranges(min_shape: Any, opt_shape: Any, max_shape: Any) -> tuple[int | Axis, ...]:
    """Read a range of shapes."""
    if min_shape is None and max_shape is None:
        raise InvalidInput("Input needs a shape, as in Input((1, 3, 224, 224)), or min_shape and max_shape")
    if min_shape is None or max_shape is None:
        raise InvalidInput(f"Input has {'max' if min_shape is None else 'min'}_shape alone; give both min_shape and max_shape")
    least, most = _shape("min_shape", min_shape), _shape("max_shape", max_shape)
    opts = most if opt_shape is None else _shape("opt_shape", opt_shape)
    if not len(least) == len(opts) == len(most):
        raise InvalidInput(
            f"min_shape, opt_shape and max_shape have {len(least)}, {len(opts)} and {len(most)} dimensions: "
            f"{tuple(least)}, {tuple(opts)} and {tuple(most)}"
        )
    dims: list[int | Axis] = []
    for i, (low, opt, high) in enumerate(zip(least, opts, most, strict=True)):
        if low > high:
            raise InvalidInput(f"dimension {i}: min_shape has {low}, which is more than max_shape's {high}")
        if not low <= opt <= high:
            raise InvalidInput(f"dimension {i}: opt_shape has {opt}, which is outside of {low}..{high}")
        dims.append(low if low == high else Axis(low, opt, high))
        if low != high:
            _check_traceable(i, Axis(low, opt, high))
    return tuple(dims)


def _check_traceable(i: int, axis: Axis) -> None:
    if axis.max is not None and axis.max < 2:
        raise InvalidInput(
            f"dimension {i} ranges over {axis}; a dynamic dimension must reach 2, since sizes 0 and 1 are traced as fixed"
        )


def _entries(field: str, shape: Any) -> list[Any]:
    if not isinstance(shape, (tuple, list)):
        raise InvalidInput(f"{field}={shape!r}; it takes a tuple of sizes such as (1, 3, 224, 224)")
    return list(shape)


def _shape(field: str, shape: Any) -> list[int]:
    return [_size(field, i, size) for i, size in enumerate(_entries(field, shape))]


def _size(field: str, i: int, size: Any) -> int:
    try:
        read = operator.index(size)
    except TypeError:
        raise InvalidInput(
            f"dimension {i} of {field} is {size!r}; it takes a whole number, or a torch.export.Dim in shape"
        ) from None
    if read < 0:
        raise InvalidInput(
            f"dimension {i} of {field} is {read}; for one that may change use torch.export.Dim, or min_shape and max_shape"
        )
    return read


def _format(name: Any) -> torch.memory_format:
    if name is None:
        return torch.contiguous_format
    for layout, (names, _) in _FORMATS.items():
        if name is layout or (isinstance(name, str) and name.removeprefix("torch.") in names):
            return layout
    known = ", ".join(names[0] for names, _ in _FORMATS.values())
    raise InvalidInput(f"format={name!r}; it takes a torch.memory_format: {known}")


def _domain(domain: Any) -> tuple[float, float]:
    if domain is None:
        return 0.0, 2.0
    if not isinstance(domain, (tuple, list)) or len(domain) != 2 or not all(isinstance(b, (int, float)) for b in domain):
        raise InvalidInput(f"tensor_domain={domain!r}; it takes a pair of numbers (low, high), of which high is not included")
    low, high = float(domain[0]), float(domain[1])
    if not low < high:
        raise InvalidInput(f"tensor_domain={domain!r} is empty; its second number must be larger than its first")
    return low, high


def _text(dims: tuple[int | Axis, ...]) -> str:
    return f"({', '.join(str(d) for d in dims)}{',' if len(dims) == 1 else ''})"
