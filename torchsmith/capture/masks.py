"""Sizes that attention needs to be equal, and torch.export does not tie: a mask's and those of what it masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.capture.smallest import names_of
from torchsmith.inputs import ExampleInputs

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def pairs(program: ExportedProgram, inputs: ExampleInputs) -> list[tuple[str, str]]:
    """Names of dimensions that are one size wherever attention's mask is not broadcast.

    torch.export keeps attention as one op, whose shapes it never compares; of additions and the like it learns as much by
    itself. Dimensions of the same size in the example alone, as one of size 1 may be meant to be broadcast.
    """
    names = names_of(program, inputs) if inputs.is_dynamic else {}
    found = dict.fromkeys(
        (names[mine], names[other])
        for module in program.graph_module.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
        if node.target is _ATTENTION
        for mine, other in _met(node)
        if mine in names and other in names
    )
    return [(mine, other) for mine, other in found if mine != other]


def _met(node: fx.Node) -> Iterator[tuple[object, object]]:
    """The symbols that meet where the mask is applied to the scores, (…, queries, keys)."""
    query, key, *_ = (given.meta.get("val") if isinstance(given, fx.Node) else None for given in node.args[:2])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    mask = mask.meta.get("val") if isinstance(mask, fx.Node) else None
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(mask, Tensor)):
        return
    for mine, other in zip(reversed(mask.shape), reversed((*query.shape[:-1], key.shape[-2])), strict=False):
        if isinstance(mine, torch.SymInt) and isinstance(other, torch.SymInt) and mine.node.hint == other.node.hint != 1:
            yield mine.node.expr, other.node.expr
