"""One step of a recurrent network: LSTM, GRU and plain cells, as linear layers and what is done to their outputs."""

from __future__ import annotations

import torch

from torchsmith.ir.graph import Value
from torchsmith.ops.binary import Binary
from torchsmith.ops.linear import linear
from torchsmith.ops.registry import converter
from torchsmith.ops.slice import sliced
from torchsmith.ops.unary import Unary

aten = torch.ops.aten

_add, _sub, _mul = Binary("add"), Binary("sub"), Binary("mul")
_sigmoid, _tanh = Unary("sigmoid"), Unary("tanh")


def _gates(x: Value, count: int) -> list[Value]:
    """The `count` equal parts of the last dimension."""
    width = x.type.shape[-1]
    assert isinstance(width, int) and width % count == 0, (x, count)
    size = width // count
    return [sliced(x, -1, i * size, (i + 1) * size) for i in range(count)]


def lstm_step(projected: Value, h: Value, c: Value, w_hh: Value, b_hh: Value | None) -> tuple[Value, Value]:
    """The next (h, c). projected: (B, 4H), the input times its weights; h, c: (B, H); w_hh: (4H, H)."""
    i, f, g, o = _gates(_add(projected, linear(h, w_hh, b_hh)), 4)
    c = _add(_mul(_sigmoid(f), c), _mul(_sigmoid(i), _tanh(g)))
    return _mul(_sigmoid(o), _tanh(c)), c


def gru_step(projected: Value, h: Value, w_hh: Value, b_hh: Value | None) -> Value:
    """The next h. projected: (B, 3H); h: (B, H); w_hh: (3H, H)."""
    (r, z, n), (hr, hz, hn) = _gates(projected, 3), _gates(linear(h, w_hh, b_hh), 3)
    new = _tanh(_add(n, _mul(_sigmoid(_add(r, hr)), hn)))
    return _add(new, _mul(_sigmoid(_add(z, hz)), _sub(h, new)))


@converter(aten.lstm_cell.default)
def lstm_cell(
    x: Value, hx: list[Value], w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None
) -> tuple[Value, Value]:
    h, c = hx
    return lstm_step(linear(x, w_ih, b_ih), h, c, w_hh, b_hh)


@converter(aten.gru_cell.default)
def gru_cell(x: Value, h: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None) -> Value:
    return gru_step(linear(x, w_ih, b_ih), h, w_hh, b_hh)


@converter(aten.rnn_tanh_cell.default)
def rnn_tanh_cell(x: Value, h: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None) -> Value:
    return _tanh(_add(linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)))


@converter(aten.rnn_relu_cell.default)
def rnn_relu_cell(x: Value, h: Value, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None) -> Value:
    return Unary("relu")(_add(linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)))
