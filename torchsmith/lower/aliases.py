"""Which values may share memory, and where that can be seen."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

aten = torch.ops.aten

# Composite ops whose schemas tell no alias, because they have none: each computes its result. The other composite ops may
# return what they were given (dropout in eval mode does), whatever their schemas say.
COMPUTED = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "batch_norm", "concat", "conv1d",
    "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "group_norm", "instance_norm",
    "layer_norm", "linear", "log_softmax", "matmul", "max_pool1d", "max_pool2d", "max_pool3d", "one_hot", "outer", "relu6",
    "rms_norm", "scaled_dot_product_attention", "softmax", "std", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_nearest2d", "var",
}  # fmt: skip

# ATen ops whose result depends on strides, not only on shape and elements.
_SEES_STRIDES = ("as_strided", "view.dtype", "view_as_complex", "view_as_real", "stride", "is_contiguous", "storage_offset")


def is_composite(target: OpOverload) -> bool:
    """Whether the op is written in terms of other ops, so that PyTorch can take it apart."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        str(target).replace(".", "::", 1).removesuffix(".default"), "CompositeImplicitAutograd"
    )


def sources(node: fx.Node) -> list[fx.Node]:
    """The arguments whose memory the node's outputs may be."""
    if node.op != "call_function" or not node.all_input_nodes:
        return []
    if node.target is operator.getitem:
        return [node.args[0]]  # type: ignore[list-item]
    if not isinstance(node.target, OpOverload):
        return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), (Tensor, tuple, list))]
    schema = node.target._schema
    if any(returned.alias_info is not None for returned in schema.returns):
        tied = {a.name for a in schema.arguments if a.alias_info is not None}
        return [n for name, n in _tensor_arguments(node) if name in tied]
    if is_composite(node.target) and node.target._overloadpacket.__name__ not in COMPUTED:
        return [n for _, n in _tensor_arguments(node)]
    return []


def mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that the node writes to."""
    if not isinstance(node.target, OpOverload):
        return []
    written = {a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if node.target in (aten.batch_norm.default, aten.instance_norm.default):  # whose schemas keep it to themselves
        names = [a.name for a in node.target._schema.arguments]
        flag = names.index("training" if "training" in names else "use_input_stats")
        if len(node.args) > flag and node.args[flag] is True:
            written |= {"running_mean", "running_var"}
    return [n for name, n in _tensor_arguments(node) if name in written]


def is_returned(node: fx.Node) -> bool:
    """Whether the node's memory may be returned to the user."""
    return _reaches(node, lambda user: user.op == "output")


def is_seen(node: fx.Node) -> bool:
    """Whether the node's memory, not only its elements, can matter to anyone.

    It does where it may be returned to the user, or reaches an op that depends on strides or that is not ATen's.
    """
    return _reaches(node, lambda user: user.op == "output" or _sees_strides(user))


def _reaches(node: fx.Node, stop: Callable[[fx.Node], bool]) -> bool:
    """Whether a user of the node's memory, under whatever name, is one that `stop` looks for."""
    reached, waiting = {node}, [node]
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if stop(user):
                return True
            if user not in reached and value in sources(user):
                reached.add(user)
                waiting.append(user)
    return False


def _sees_strides(user: fx.Node) -> bool:
    if user.target is operator.getitem:
        return False
    if not isinstance(user.target, OpOverload):
        return not _is_size_function(user)
    if user.target.namespace not in ("aten", "prims"):
        return True
    name = str(user.target).partition(".")[2]
    return any(name == op or name.startswith(op + ".") for op in _SEES_STRIDES)


def _is_size_function(user: fx.Node) -> bool:
    return not isinstance(user.meta.get("val"), (Tensor, tuple, list))


def _tensor_arguments(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    assert isinstance(node.target, OpOverload)
    positional = [a.name for a in node.target._schema.arguments if not a.kwarg_only]
    for name, value in (*zip(positional, node.args, strict=False), *node.kwargs.items()):
        found: list[fx.Node] = []
        fx.node.map_arg(value, found.append)
        for n in found:
            if isinstance(n.meta.get("val"), (Tensor, tuple, list)):
                yield name, n
