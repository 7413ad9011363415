"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.ops.recurrent import GATES, Recurrent

# Where OpenVINO's gates stand among PyTorch's.
ORDER = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


@emitter(Recurrent)
def recurrent(e: Emission, op: Recurrent, x: ov.Output, *others: ov.Output) -> Any:
    refuse_empty(e)
    states, (w_ih, w_hh, *biases) = others[: op.states], others[op.states :]
    hidden = e.node.inputs[1].type.shape[-1]
    assert isinstance(hidden, int)
    gates = [_ordered(w, op.kind) for w in (w_ih, w_hh)]
    arguments = (
        x,
        *(ops.unsqueeze(s, e.ints([1])) for s in states),
        _lengths(e, x),
        *(ops.unsqueeze(w, e.ints([0])) for w in gates),
        ops.unsqueeze(_bias(e, op.kind, biases, gates[0]), e.ints([0])),
        hidden,
        "reverse" if op.reverse else "forward",
    )
    if op.kind == "lstm":
        y = ops.lstm_sequence(*arguments)
    elif op.kind == "gru":
        # as in PyTorch, the reset gate scales the product, not the state before it
        y = ops.gru_sequence(*arguments, linear_before_reset=True)
    else:
        y = ops.rnn_sequence(*arguments, activations=[op.kind.removeprefix("rnn_")])
    outputs = (ops.squeeze(y.output(k), e.ints([1])).output(0) for k in range(1 + op.states))
    return tuple(outputs)


def _lengths(e: Emission, x: ov.Output) -> Any:
    """How many steps each row of the batch has: all of them."""
    shape = ops.shape_of(x, "i64")
    batch, steps = (ops.gather(shape, e.ints([axis]), ops.constant(np.int64(0))) for axis in (0, 1))
    return ops.broadcast(steps, batch)


def _parts(w: ov.Output, kind: str) -> list[ov.Output]:
    return list(ops.split(w, ops.constant(np.int64(0)), GATES[kind]).outputs())


def _ordered(w: ov.Output, kind: str) -> ov.Output:
    """Weights or a bias with the gates in OpenVINO's order."""
    parts = _parts(w, kind)
    return ops.concat([parts[k] for k in ORDER[kind]], 0).output(0)


def _bias(e: Emission, kind: str, biases: Sequence[ov.Output], weight: ov.Output) -> Any:
    if not biases:
        rows = e.node.inputs[-2].type.shape[0] // GATES[kind] * (4 if kind == "gru" else GATES[kind])
        return ops.broadcast(e.number(0.0, weight), e.ints([rows]))
    both = ops.add(*biases).output(0)
    if kind != "gru":
        return _ordered(both, kind)
    # the two biases of the candidate stay apart: the reset gate scales one of them
    (reset, update, _), input_parts, hidden_parts = _parts(both, kind), _parts(biases[0], kind), _parts(biases[1], kind)
    return ops.concat([update, reset, input_parts[2], hidden_parts[2]], 0)
