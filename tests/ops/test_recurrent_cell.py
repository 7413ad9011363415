"""One step of LSTM, GRU and plain recurrent cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand

aten = torch.ops.aten
X, H, C = rand(3, 5), rand(3, 4), rand(3, 4, low=-1.0)


def weights(gates: int, biases: bool) -> tuple[Tensor, ...]:
    both = rand(gates * 4, 5, low=-0.7, high=0.7), rand(gates * 4, 4, low=-0.7, high=0.7)
    return (*both, rand(gates * 4), rand(gates * 4, low=-1.0, high=1.0)) if biases else both


@pytest.mark.parametrize("biases", [True, False])
def test_lstm(biases: bool) -> None:
    OpCase(lambda x, h, c, *w: aten.lstm_cell(x, [h, c], *w), X, H, C, *weights(4, biases)).accepted()


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("cell", "gates"), [(aten.gru_cell, 3), (aten.rnn_tanh_cell, 1), (aten.rnn_relu_cell, 1)], ids=str)
def test_cells_with_one_state(cell: Callable[..., Any], gates: int, biases: bool) -> None:
    OpCase(lambda x, h, *w: cell(x, h, *w), X, H, *weights(gates, biases)).accepted()


def test_the_batch_may_vary() -> None:
    lstm = OpCase(lambda x, h, c, *w: aten.lstm_cell(x, [h, c], *w), X, H, C, *weights(4, True), dynamic=[(0, 0), (1, 0), (2, 0)])
    lstm.accepted()
    OpCase(lambda x, h, *w: aten.gru_cell(x, h, *w), X, H, *weights(3, True), dynamic=[(0, 0), (1, 0)]).accepted()


def test_a_cell_in_float64_is_for_the_reference_alone() -> None:
    args = [t.double() for t in (X, H, *weights(3, True))]
    OpCase(lambda x, h, *w: aten.gru_cell(x, h, *w), *args).refused(why="float64", on="openvino")
