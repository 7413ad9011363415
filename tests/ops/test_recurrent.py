import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand

KINDS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def case(
    kind: str,
    x: Tensor,
    hidden: int = 6,
    layers: int = 1,
    both: bool = False,
    biases: bool = True,
    batch_first: bool = False,
    **options,
) -> OpCase:
    """The ATen function of `kind` on x: (T, N, I), with states and weights of its own, as inputs after x."""
    directions, rows = 2 if both else 1, GATES[kind] * hidden
    states = [rand(layers * directions, x.shape[0 if batch_first else 1], hidden) for _ in range(2 if kind == "lstm" else 1)]
    weights = []
    for layer in range(layers):
        for direction in range(directions):
            inputs = x.shape[2] if layer == 0 else hidden * directions
            shapes = [(rows, inputs), (rows, hidden), *[(rows,)] * (2 if biases else 0)]
            weights += [rand(*shape, low=-1 - direction / 2, high=1.0) / 2 for shape in shapes]

    def call(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        own, params = others[: len(states)], list(others[len(states) :])
        return KINDS[kind](x, own if kind == "lstm" else own[0], params, biases, layers, 0.0, False, both, batch_first)

    return OpCase(call, x, *states, *weights, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "biases": False}, {"layers": 2, "both": True}], ids=str)
def test_recurrent(kind: str, options: dict) -> None:
    case(kind, rand(3, 4, 5), **options).accepted()


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_one(kind: str) -> None:
    case(kind, rand(1, 1, 1), hidden=1).accepted()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_batches_that_vary(kind: str) -> None:
    # torch.export fixes the number of steps itself
    states = [(1, 1), (2, 1)] if kind == "lstm" else [(1, 1)]
    case(kind, rand(3, 4, 5), both=True, dynamic=[(0, 1), *states], least=2).accepted()


@pytest.mark.parametrize("module", [torch.nn.LSTM, torch.nn.GRU], ids=lambda m: m.__name__)
def test_a_module_of_one_sequence(module: type) -> None:
    layer = module(5, 6, 2, bidirectional=True).eval()
    OpCase(layer, rand(3, 5), dtypes=(torch.float32,), engines=()).graph()


def test_projections_are_refused() -> None:
    layer = torch.nn.LSTM(5, 6, proj_size=3).eval()
    OpCase(layer, rand(3, 2, 5)).refused(why="proj_size")


def test_no_elements_are_refused() -> None:
    case("gru", rand(3, 0, 5)).refused(why="tensors without elements", on="openvino")
