"""Linear layers of float8 by cuBLASLt, with one pointwise launch for what follows that is not in its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.float8 import FLOAT8, MOST_FAST_TERMS
from torchsmith.backends.cuda.layout import View, contiguous
from torchsmith.backends.cuda.library import LibraryFloat8Linear
from torchsmith.backends.cuda.tactics.after import emit_after, plan_after, renamed
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import product
from torchsmith.ir.graph import Node, Value

UNIT = 16  # of which sizes are multiples


@dataclass(frozen=True)
class CublasFloat8Config:
    """variant: "scaled", where the library scales columns, and rounds to bfloat16; "plain", where it gives float32."""

    variant: str


class CublasFloat8Template:
    name = "cublas_float8"
    kinds = frozenset({"gemm_float8", "Float8Linear"})
    config_type = CublasFloat8Config

    def configs(self, e: Emission) -> Sequence[CublasFloat8Config]:
        parts = _product(e)
        found = [CublasFloat8Config("plain")]
        if scaling(e, parts) is not None:
            found.insert(0, CublasFloat8Config("scaled"))
        for config in found:
            self.emit(Emission(e.node, e.views, e._packed), config)  # whether what follows can be written
        return found

    def emit(self, e: Emission, config: CublasFloat8Config) -> None:
        parts = _product(e)
        main, (output,) = parts.main, parts.outputs
        x, weight = main.inputs
        fast = int(weight.type.shape[1]) <= MOST_FAST_TERMS
        if config.variant == "scaled":
            scaled = scaling(e, parts)
            assert scaled is not None, f"{e.node} has no scales of columns"
            columns = e.packed(scaled.inputs[1], "columns", lambda t: t.reshape(1, -1))
            rows = e.packed(scaled.inputs[1], f"rows{_rows(x)}", lambda t: t.new_ones(_rows(x) or 1, 1))
            last, dtype = scaled, torch.bfloat16
        else:
            one = e.packed(weight, "one", lambda t: torch.ones(()))
            rows, columns, last, dtype = one, one, main, torch.float32
        after = [n for n in parts.after if n is not last]
        if [type(n.op).__name__ for n in after] == ["Cast"] and output.type.dtype == dtype:
            after = []
        result = e.temporary(main.outputs[0].type.shape, dtype, "product") if after else output
        e.views.setdefault(result, View(result, contiguous(result.type.shape)))
        planned = plan_after(e, result, renamed(after, last.outputs[0], result), (output,))
        e.call(LibraryFloat8Linear(dtype, fast), (x, weight, rows, columns), (result,))
        emit_after(e, planned)


def scaling(e: Emission, parts: Parts) -> Node | None:
    """The product's multiplication by a constant for each column, where what follows keeps no more bits than bfloat16 has."""
    (wide,), (output,) = parts.main.outputs, parts.outputs
    rows = _rows(parts.main.inputs[0])
    if output.type.dtype not in (torch.bfloat16, FLOAT8) or rows is None:
        return None
    users = [n for n in parts.after if wide in n.inputs]
    if len(users) != 1 or str(users[0].op) != "Binary[mul]" or users[0].inputs[0] is not wide:
        return None
    scale = e.constant(users[0].inputs[1])
    whole = scale is not None and scale.numel() == wide.type.shape[-1] and scale.shape[-1] == scale.numel()
    return users[0] if whole and (output.type.dtype == FLOAT8 or len(parts.after) > 1) else None


def _rows(x: Value) -> int | None:
    rows = product(x.type.shape[:-1])
    return rows if isinstance(rows, int) else None


def _product(e: Emission) -> Parts:
    """Raises Unsupported where the library takes no such product."""
    parts = parts_of(e.node, "Float8Linear")
    x, weight = parts.main.inputs
    if parts.before or len(parts.outputs) > 1:
        raise Unsupported("the library runs nothing before the product, and gives one output")
    if e.constant(weight) is None or any(not isinstance(n, int) or n % UNIT for n in weight.type.shape):
        raise Unsupported(f"cuBLASLt multiplies float8 by known weights whose sizes are multiples of {UNIT}, and not {weight.type}")
    if e.view(x).strides[-1] != 1:
        raise Unsupported("the features of the first operand do not lie together")
    return parts


TEMPLATE = CublasFloat8Template()
