"""Which ops compute in the reduced precision, as a table.

matrix: computes in the reduced dtype (with float32 accumulation), casting its inputs down.
follow: computes in the dtype that reaches it: reduced where any activation is, float32 otherwise.
wide: stays in float32, because range or cancellation would cost accuracy; everything that is not named here.
"""

from __future__ import annotations

from typing import Literal

from torchsmith.ir.graph import Node
from torchsmith.ops.batch_norm import BatchNorm
from torchsmith.ops.binary import Binary
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed
from torchsmith.ops.linear import Linear
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.unary import Unary

Role = Literal["matrix", "follow", "wide"]

MATRIX = (Convolution, ConvolutionTransposed, Linear)
# normalisation, softmax and reductions take and give the reduced dtype, and compute in float32 inside
FOLLOW = (BatchNorm,)
FOLLOW_FUNCTIONS: dict[type, frozenset[str]] = {
    Unary: frozenset({"relu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "mish", "neg", "abs", "erf"}),
    Binary: frozenset({"add", "sub", "mul", "maximum", "minimum"}),
    Reduce: frozenset({"mean", "max", "min"}),
}


def role_of(node: Node) -> Role:
    op = node.op
    if isinstance(op, MATRIX):
        return "matrix"
    if op.moves_data or isinstance(op, FOLLOW) or getattr(op, "function", None) in FOLLOW_FUNCTIONS.get(type(op), frozenset()):
        return "follow"
    return "wide"
