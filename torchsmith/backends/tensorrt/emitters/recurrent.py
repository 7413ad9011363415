"""Recurrent layers, as loops over their steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.ops.recurrent import GATES, Recurrent


@emitter(Recurrent)
def recurrent(e: Emission, op: Recurrent, x: Any, *others: Any) -> Any:
    """What the input adds to the gates is one product before the loop; the loop adds what the state does."""
    states, (w_ih, w_hh, *biases) = others[: op.states], others[op.states :]
    b_ih, b_hh = (e.reshape_to(b, (1, -1)) for b in biases) if biases else (None, None)
    projected = _product(e, x, e.rank(w_ih, 3))
    if b_ih is not None:
        projected = e.binary("SUM", projected, b_ih)
    steps = e.reshape_to(e.to(e.size(e.node.inputs[0].type.shape[1]), torch.int32), ())
    loop = e.network.add_loop()
    loop.add_trip_limit(steps, trt().TripLimit.COUNT)
    now = e.layer(loop.add_iterator(projected, 1, op.reverse))
    kept, before = [], []
    for state in states:
        kept.append(loop.add_recurrence(state))
        before.append(e.layer(kept[-1]))
    seen = _product(e, before[0], w_hh)
    if b_hh is not None:
        seen = e.binary("SUM", seen, b_hh)
    after = STEPS[op.kind](e, _Gates(e, now, op.kind), _Gates(e, seen, op.kind), *before)
    for recurrence, state in zip(kept, after, strict=True):
        recurrence.set_input(1, state)
    kinds = trt().LoopOutput
    every = loop.add_loop_output(after[0], kinds.REVERSE if op.reverse else kinds.CONCATENATE, 1)
    every.set_input(1, steps)
    return (e.layer(every), *(e.layer(loop.add_loop_output(state, kinds.LAST_VALUE)) for state in before))


class _Gates:
    """Equal parts of (N, G * H) by number."""

    def __init__(self, e: Emission, x: Any, kind: str) -> None:
        self.e, self.x = e, x
        states = e.node.inputs[1].type
        self.size = int(states.shape[1])
        self.shape = (e.node.inputs[0].type.shape[0], self.size)
        self.count = GATES[kind]

    def __getitem__(self, number: int) -> Any:
        assert 0 <= number < self.count, (number, self.count)
        return self.x if self.count == 1 else self.e.sliced(self.x, (0, number * self.size), self.shape)


def _product(e: Emission, x: Any, weight: Any) -> Any:
    operations = trt().MatrixOperation
    return e.layer(e.network.add_matrix_multiply(x, operations.NONE, weight, operations.TRANSPOSE))


def _lstm(e: Emission, now: _Gates, seen: _Gates, h: Any, c: Any) -> tuple[Any, ...]:
    i, f, g, o = (e.activation("TANH" if k == 2 else "SIGMOID", e.binary("SUM", now[k], seen[k])) for k in range(4))
    c = e.binary("SUM", e.binary("PROD", f, c), e.binary("PROD", i, g))
    return e.binary("PROD", o, e.activation("TANH", c)), c


def _gru(e: Emission, now: _Gates, seen: _Gates, h: Any) -> tuple[Any, ...]:
    r, z = (e.activation("SIGMOID", e.binary("SUM", now[k], seen[k])) for k in range(2))
    new = e.activation("TANH", e.binary("SUM", now[2], e.binary("PROD", r, seen[2])))
    return (e.binary("SUM", new, e.binary("PROD", z, e.binary("SUB", h, new))),)


def _plain(kind: str) -> Callable[..., tuple[Any, ...]]:
    def step(e: Emission, now: _Gates, seen: _Gates, h: Any) -> tuple[Any, ...]:
        return (e.activation(kind, e.binary("SUM", now[0], seen[0])),)

    return step


STEPS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _plain("TANH"),
    "rnn_relu": _plain("RELU"),
}
