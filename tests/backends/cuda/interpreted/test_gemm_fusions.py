"""What runs together with a matrix product: diamonds, residuals, siblings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.siblings import siblings
from torchsmith.ir.interpret import interpret
from torchsmith.ir.verify import verify


class Diamonds(nn.Module):
    """x * sigmoid(x) by hand, a value used three times, and a residual that another product computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        y = self.first(x)
        y = y * torch.sigmoid(y)
        z = self.second(y)
        z = torch.tanh(z) * z + torch.sigmoid(z)
        return torch.relu(z + y) + place


class Loop(nn.Module):
    """A value that reaches what follows it also through another product: taking both would make a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.first(x))
        z = self.second(y) + y
        return z * torch.sigmoid(z), z


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(2, 7, 4, 8).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(2, 7, 4, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_diamonds() -> None:
    found = check(Diamonds(), torch.randn(2, 5, 16), torch.randn(5, 24))
    assert found.kernels.count("gemm") == 2 and len([k for k in found.kernels if k != "gemm"]) <= 2, found.kernels


def test_a_value_with_a_use_outside_ends_the_epilogue() -> None:
    found = check(Loop(), torch.randn(5, 16))
    assert found.kernels.count("gemm") == 2


def test_more_operands_than_a_kernel_takes() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, *others: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            for other in others:
                y = y + other
            return y

    found = check(Sum(), *(torch.randn(5, 8) for _ in range(13)))
    assert "gemm" in found.kernels


def test_siblings() -> None:
    x = torch.randn(2, 7, 32)
    graph = graph_of(Heads(), [x])
    joined = siblings(graph)
    verify(joined, "siblings")
    assert sum(type(n.op).__name__ == "Linear" for n in joined.nodes) == 1
    (found,), (wanted,) = interpret(joined, [x]), interpret(graph, [x])
    assert torch.equal(found, wanted)
    assert check(Heads(), x).kernels.count("gemm") == 1


def test_siblings_with_epilogues_of_their_own_stay_apart() -> None:
    class Glu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = F.silu(self.gate(x)) * self.up(x)
            return y

    graph = fuse(graph_of(Glu(), [torch.randn(5, 16)]))
    assert [n.op.kind for n in graph.nodes if hasattr(n.op, "kind")].count("gemm") == 2
    assert check(Glu(), torch.randn(5, 16)).kernels.count("gemm") == 2
