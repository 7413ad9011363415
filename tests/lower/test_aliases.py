"""What the passes believe about memory, asked of PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from tests.lower.programs import exported
from torchsmith.lower.aliases import COMPUTED, is_returned, is_seen, mutated, sources

X, W = torch.rand(1, 1, 1, 4), torch.ones(1, 1, 1, 1)

# each of COMPUTED, called so that it changes as little as it can
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x[0], 4),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (1, 4)),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x[None], (1, 1, 4)),
    "avg_pool1d": lambda x: F.avg_pool1d(x[0], 1),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(1), torch.ones(1)),
    "concat": lambda x: torch.concat([x]),
    "conv1d": lambda x: F.conv1d(x[0], W[0]),
    "conv2d": lambda x: F.conv2d(x, W),
    "conv3d": lambda x: F.conv3d(x[None], W[None]),
    "conv_transpose1d": lambda x: F.conv_transpose1d(x[0], W[0]),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, W),
    "conv_transpose3d": lambda x: F.conv_transpose3d(x[None], W[None]),
    "group_norm": lambda x: F.group_norm(x, 1),
    "instance_norm": lambda x: F.instance_norm(x),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "linear": lambda x: F.linear(x, torch.eye(4)),
    "log_softmax": lambda x: torch.log_softmax(x, 0),
    "matmul": lambda x: torch.matmul(x, torch.eye(4)),
    "max_pool1d": lambda x: F.max_pool1d(x[0], 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 1),
    "max_pool3d": lambda x: F.max_pool3d(x[None], 1),
    "one_hot": lambda x: torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.int64), 1) + 0 * x.long()[0, 0, 0, :1],
    "outer": lambda x: torch.outer(x.flatten(), torch.ones(1)),
    "relu6": lambda x: torch.ops.aten.relu6(x),
    "rms_norm": lambda x: F.rms_norm(x, (4,)),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "softmax": lambda x: torch.softmax(x, 0),
    "std": lambda x: torch.std(x, 0, correction=0),
    "upsample_bicubic2d": lambda x: F.interpolate(x, scale_factor=1, mode="bicubic"),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=1, mode="bilinear"),
    "upsample_nearest2d": lambda x: F.interpolate(x, scale_factor=1),
    "var": lambda x: torch.var(x, 0, correction=0),
}


@pytest.mark.parametrize("name", sorted(COMPUTED))
def test_computed_ops_return_memory_of_their_own(name: str) -> None:
    x = X.clone()
    assert CALLS[name](x).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def nodes_of(function: Callable[..., object], *inputs: Tensor) -> dict[str, fx.Node]:
    return {node.name: node for node in exported(function, *inputs).graph.nodes}


def test_sources() -> None:
    def function(x: Tensor, y: Tensor) -> object:
        a, _ = x.chunk(2)
        return torch.relu(a.t()), F.dropout(y, training=False), F.linear(x, y), x.reshape(-1).add_(1)

    nodes = nodes_of(function, torch.rand(4, 4), torch.rand(4, 4))
    told = {name: [source.name for source in sources(node)] for name, node in nodes.items() if node.op == "call_function"}
    assert told == {
        "chunk": ["inputs_0"],
        "getitem": ["chunk"],
        "getitem_1": ["chunk"],
        "t": ["getitem"],
        "relu": [],
        "dropout": ["inputs_1"],
        "linear": [],
        "reshape": ["inputs_0"],
        "add_": ["reshape"],
    }
    assert [source.name for source in mutated(nodes["add_"])] == ["reshape"] and not mutated(nodes["relu"])


def test_what_is_returned_or_seen() -> None:
    def function(x: Tensor) -> object:
        a, b, c = x + 1, x + 2, x + 3
        return a.t().reshape(-1), b.view(-1).sum(), torch.view_as_complex(c).abs()

    nodes = nodes_of(function, torch.rand(4, 2))
    kept = {name: (is_returned(node), is_seen(node)) for name, node in nodes.items() if name.startswith("add")}
    assert kept == {"add": (True, True), "add_1": (False, False), "add_2": (False, True)}
