"""Recurrent layers: LSTM, GRU and the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.concat import concatenated
from torchsmith.ops.permute import permuted
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.slice import sliced

aten = torch.ops.aten

# How many gates a cell has; their weights stand one below the other, in PyTorch's order.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
LAYERS = {"gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


@dataclass(frozen=True)
class Recurrent(Op):
    """One layer in one direction over x: (N, T, I). Gives every output (N, T, H), and the last state (N, H).

    kind: "lstm" (which takes and gives a cell state (N, H) after the hidden one), "gru", "rnn_tanh" or "rnn_relu".
    Inputs: x, the hidden state (N, H), the cell state, weights (G * H, I) and (G * H, H) for G gates, and where there are
    biases two of (G * H,). reverse: from the last step to the first. Source: aten.lstm, gru, rnn_tanh, rnn_relu.
    """

    kind: str
    reverse: bool

    def infer(self, x: TensorType, *others: TensorType) -> tuple[TensorType, ...]:
        hidden, w_ih, w_hh = others[0], *others[self.states : self.states + 2]
        if len({t.dtype for t in (x, *others)}) > 1 or not x.dtype.is_floating_point or x.rank != 3:
            raise Unsupported(
                f"a recurrent layer of {x} with {', '.join(map(str, others))}; it takes (N, T, I) of one floating dtype"
            )
        size = hidden.shape[-1]
        if not isinstance(size, int) or w_ih.shape[0] != GATES[self.kind] * size or not same(w_ih.shape[1], x.shape[2]):
            raise Unsupported(f"a recurrent layer of {x} with state {hidden} and weights {w_ih} and {w_hh}")
        return (x.with_shape(*x.shape[:2], size), *[x.with_shape(x.shape[0], size)] * self.states)

    @property
    def states(self) -> int:
        return 2 if self.kind == "lstm" else 1

    def reference(self, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        states, weights = [s.unsqueeze(0) for s in others[: self.states]], list(others[self.states :])
        x = x.flip(1) if self.reverse else x
        biased = len(weights) == 4
        if self.kind == "lstm":
            y, *last = torch.lstm(x, states, weights, biased, 1, 0.0, False, False, True)
        else:
            y, *last = LAYERS[self.kind](x, states[0], weights, biased, 1, 0.0, False, False, True)
        return (y.flip(1) if self.reverse else y, *(s.squeeze(0) for s in last))


def _layers(
    kind: str, x: Value, states: Sequence[Value], params: Sequence[Value], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """Layers over layers, each in one direction or both, as ATen's recurrent functions."""
    if train and dropout:
        raise Unsupported(f"recurrent layers with dropout={dropout} between them, which is random; call .eval()")
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    if len(params) != num_layers * directions * each:
        raise Unsupported("an LSTM with proj_size, whose hidden state is smaller than its cell state")
    x = x if batch_first else permuted(x, [1, 0, 2])
    last: list[tuple[Value, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = [_at(s, number) for s in states]
            y, *after = Recurrent(kind, direction == 1)(x, *own, *params[number * each : (number + 1) * each])
            outputs.append(y)
            last.append(tuple(after))
        x = concatenated(outputs, 2)
    stacked = (concatenated([reshaped(s, (1, *s.type.shape)) for s in some], 0) for some in zip(*last, strict=True))
    return (x if batch_first else permuted(x, [1, 0, 2]), *stacked)


def _at(states: Value, index: int) -> Value:
    """states[index]."""
    return reshaped(sliced(states, 0, index, index + 1), states.type.shape[1:])


@converter(aten.lstm.input)
def lstm(
    x: Value, states: Sequence[Value], params: Sequence[Value], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value, ...]:  # fmt: skip
    return _layers("lstm", x, states, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _register(kind: str) -> None:
    @converter(getattr(aten, kind).input)
    def convert(
        x: Value, state: Value, params: Sequence[Value], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Value, ...]:  # fmt: skip
        return _layers(kind, x, [state], params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


for _kind in LAYERS:
    _register(_kind)
