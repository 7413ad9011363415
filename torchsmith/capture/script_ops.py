"""What TorchScript's operators mean in Python: the ones on numbers, strings and containers, and the ones ATen does not have."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

# TorchScript writes element types, layouts and memory formats as numbers (c10's enumerations).
DTYPES: dict[int, torch.dtype] = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 8: torch.complex32, 9: torch.complex64, 10: torch.complex128, 11: torch.bool, 15: torch.bfloat16,
}  # fmt: skip
DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
FORMATS = {0: torch.contiguous_format, 1: torch.preserve_format, 2: torch.channels_last, 3: torch.channels_last_3d}
LAYOUTS = {0: torch.strided}
ENUMS: dict[str, dict[int, Any]] = {"dtype": DTYPES, "memory_format": FORMATS, "layout": LAYOUTS}

Number = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


def _set_item(container: Any, key: Any, value: Any) -> Any:
    container[key] = value
    return container


def _extend(items: list[Any], more: list[Any]) -> list[Any]:
    items.extend(more)
    return items


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _slice(items: Any, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return items[start:end:step]


def _whole(value: Any) -> Any:
    """int(value), keeping a symbolic one symbolic."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    return value if isinstance(value, torch.SymInt) else int(value)


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _tensor(data: Any, dtype: int | None = None, device: Any = None, requires_grad: bool = False) -> torch.Tensor:
    kind = None if dtype is None else DTYPES[dtype]
    if isinstance(data, torch.Tensor):
        return data.clone().to(dtype=kind, device=device)
    if isinstance(data, (torch.SymInt, torch.SymFloat)):
        kind = kind or (torch.int64 if isinstance(data, torch.SymInt) else torch.get_default_dtype())
        return torch.scalar_tensor(data, dtype=kind, device=device)
    return torch.tensor(data, dtype=kind, device=device)


def _to(tensor: torch.Tensor, *given: Any) -> torch.Tensor:
    """aten::to.prim_Device, prim_dtype and prim_other, told apart by what they are given."""
    given, (_, copy) = given[:-2], given[-2:]
    device = next((g for g in given if isinstance(g, (torch.device, str))), None)
    dtype = next((DTYPES[g] for g in given if isinstance(g, int)), None)
    return tensor.to(device=device, dtype=dtype, copy=copy)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *_: bool,
) -> torch.Tensor:
    """aten::_convolution, which traces contain, as the convolution that it was traced from."""
    rank = weight.dim() - 2
    if transposed:
        call = getattr(torch, f"conv_transpose{rank}d")
        result: torch.Tensor = call(x, weight, bias, stride, padding, output_padding, groups, dilation)
        return result
    result = getattr(torch, f"conv{rank}d")(x, weight, bias, stride, padding, dilation, groups)
    return result


# Operators without a tensor among their arguments and results.
PLAIN: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::fmod": math.fmod,
    "aten::neg": operator.neg,
    "aten::pow": lambda a, b: float(a) ** b,
    "aten::pow.int_to_int": operator.pow,
    "aten::abs": abs,
    "prim::abs": abs,
    "aten::floor": math.floor,
    "aten::ceil": math.ceil,
    "aten::round": round,
    "aten::sqrt": math.sqrt,
    "aten::exp": math.exp,
    "aten::log": math.log,
    "aten::log2": math.log2,
    "aten::sin": math.sin,
    "aten::cos": math.cos,
    "prim::min": min,
    "prim::max": max,
    "aten::sum": sum,
    "aten::all": all,
    "aten::any": any,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::__lshift__": operator.lshift,
    "aten::__rshift__": operator.rshift,
    "aten::__not__": operator.not_,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__contains__": operator.contains,
    "aten::Int": _whole,
    "aten::Float": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": _item,
    "aten::len": len,
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": _set_item,
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::add_": _extend,
    "aten::insert": lambda items, i, item: items.insert(i, item),
    "aten::pop": lambda items, *at: items.pop(*at),
    "aten::clear": lambda items: items.clear(),
    "aten::reverse": lambda items: items.reverse(),
    "aten::index": lambda items, item: items.index(item),
    "aten::count": lambda items, item: items.count(item),
    "aten::copy": lambda items: items.copy(),
    "aten::list": list,
    "aten::slice": _slice,
    "aten::keys": lambda table: list(table.keys()),
    "aten::values": lambda table: list(table.values()),
    "aten::items": lambda table: list(table.items()),
    "aten::get": lambda table, key, default=None: table.get(key, default),
    "aten::update": lambda table, other: table.update(other),
    "aten::dict": dict,
    "aten::str": str,
    "aten::format": lambda text, *values: text.format(*values),
    "aten::percentFormat": lambda text, *values: text % values,
    "aten::join": lambda text, items: text.join(items),
    "aten::lower": lambda text: text.lower(),
    "aten::upper": lambda text: text.upper(),
    "aten::startswith": lambda text, start, *at: text.startswith(start, *at),
    "aten::endswith": lambda text, end, *at: text.endswith(end, *at),
    "aten::warn": lambda *_: None,
    "aten::has_torch_function": lambda *_: False,
    "aten::is_autocast_enabled": lambda *_: False,
    "aten::set_grad_enabled": lambda *_: None,
    "prim::Print": lambda *_: None,
    "prim::rangelist": lambda n: list(range(n)),
    "prim::unchecked_cast": lambda value: value,
    "prim::unchecked_unwrap_optional": lambda value: value,
    "prim::NumToTensor": lambda number: number,  # stays a number, so that sizes keep their symbols
    "prim::Uninitialized": lambda: None,
    "prim::TupleConstruct": lambda *values: values,
    "prim::ListConstruct": lambda *values: list(values),
    "prim::DictConstruct": lambda *values: dict(zip(values[::2], values[1::2], strict=True)),
}

# Operators on tensors that answer with a number, or that only TorchScript has.
ON_TENSORS: dict[str, Callable[..., Any]] = {
    "aten::size": lambda t, dim=None: list(t.shape) if dim is None else t.shape[dim],
    "aten::stride": lambda t, dim=None: list(t.stride()) if dim is None else t.stride(dim),
    "aten::dim": lambda t: t.dim(),
    "aten::numel": lambda t: t.numel(),
    "aten::len": lambda t: t.shape[0],
    "aten::is_floating_point": lambda t: t.is_floating_point(),
    "aten::is_complex": lambda t: t.is_complex(),
    "aten::is_contiguous": lambda t, *_: t.is_contiguous(),
    "aten::item": _item,
    "aten::Int": _whole,
    "aten::IntImplicit": _whole,
    "aten::Float": _item,
    "aten::FloatImplicit": _item,
    "aten::ScalarImplicit": _item,
    "aten::Bool": bool,
    "aten::tensor": _tensor,
    "aten::as_tensor": _tensor,
    "aten::_convolution": _convolution,
    "aten::to.prim_Device": _to,
    "aten::to.prim_dtype": _to,
    "aten::to.prim_other": _to,
    "prim::dtype": lambda t: DTYPE_NUMBERS[t.dtype],
    "prim::device": lambda t: t.device,
    "prim::layout": lambda t: 0,
    "prim::shape": lambda t: list(t.shape),
    "prim::data": lambda t: t.detach(),
    "prim::requires_grad": lambda t: False,
    "prim::is_cuda": lambda t: t.is_cuda,
    "prim::is_cpu": lambda t: t.is_cpu,
    "prim::is_sparse": lambda t: t.is_sparse,
    "prim::is_quantized": lambda t: t.is_quantized,
    "prim::is_mkldnn": lambda t: False,
    "prim::is_meta": lambda t: False,
}

# Operators on 0-d tensors that stand for numbers: what a trace makes of arithmetic on sizes.
ON_SIZES: dict[str, Callable[..., Any]] = {
    "aten::add": lambda a, b, alpha=1: a + alpha * b,
    "aten::sub": lambda a, b, alpha=1: a - alpha * b,
    "aten::rsub": lambda a, b, alpha=1: b - alpha * a,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::div": lambda a, b, rounding_mode=None: a / b if rounding_mode is None else a // b,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::detach": lambda a: a,
    "aten::clone": lambda a, *_, **__: a,
}
