"""In-place ops become functional ones.

Most of them write to a value that nobody else holds (`relu_` on a convolution's result): the same op without its underscore,
whose result takes over every later use, says the same. Where views, inputs or buffers are written to, PyTorch's own
functionalisation traces the program again, which takes seconds on a large one.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from torchsmith.lower.aliases import mutated, sources
from torchsmith.lower.editing import Lowering, call, calls, settled, substitute
from torchsmith.lower.remove_noops import idle_dropout

aten = torch.ops.aten


def functionalize(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Writes to inputs and buffers become outputs, which the signature names as mutations."""
    if not functional(program.graph):
        for node in calls(program):
            if (original := idle_dropout(node)) is not None:  # it returns its argument; torch 2.11 traces a copy
                substitute(node, original)
        # no table: every op that is functional already stays what it is
        program = program.run_decompositions({})
    return settled(program)


def functional(graph: fx.Graph) -> bool:
    """Rewrite the in-place ops that write to a value which nobody else holds. False where others are left."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}
    memory: dict[fx.Node, set[fx.Node]] = {}  # every value's, and those of the values that may share it
    whole = True
    for node in list(graph.nodes):
        if node.target is aten.detach_.default:  # marks its argument, and writes nothing
            last_use[node.args[0]] = max(last_use[node.args[0]], last_use[node])
            substitute(node, node.args[0])
            continue
        written = mutated(node)
        if written and _is_private(written[0], memory[written[0]], last_use, order[node]) and (new := _rewritten(node)):
            for user in [user for user in written[0].users if order.get(user, -1) > order[node]]:
                user.replace_input_with(written[0], new)
            substitute(node, new)
            memory[new], order[new] = {new}, order[node]
            last_use[new], last_use[written[0]] = max(last_use[node], last_use[written[0]]), order[node]
            continue
        whole = whole and not written
        memory[node] = {node}.union(*(memory[source] for source in sources(node)))
        for other in memory[node]:
            memory[other] = memory[node]
    return whole


def _is_private(written: fx.Node, shared: set[fx.Node], last_use: dict[fx.Node, int], now: int) -> bool:
    """Whether the memory is the program's own, and from now on known by no other name."""
    return not any(other.op in ("placeholder", "get_attr") or (other is not written and last_use[other] > now) for other in shared)


def _rewritten(node: fx.Node) -> fx.Node | None:
    """The functional op in the place of an in-place one; None where it has no such twin."""
    twin = _twin(node.target)
    if twin is None:
        return None
    written = node.args[0]
    assert isinstance(written, fx.Node)
    new = call(node, twin, *node.args, **node.kwargs)
    wanted, given = written.meta["val"], new.meta["val"]
    if given.dtype != wanted.dtype:  # the functional op promotes, where the in-place one keeps its dtype
        new = call(node, aten.to.dtype, new, wanted.dtype)
    assert new.meta["val"].shape == wanted.shape, f"{twin} gives {given.shape}, {node.target} writes to {wanted.shape}"
    return new


def _twin(target: object) -> OpOverload | None:
    """`aten.relu` for `aten.relu_`."""
    if not isinstance(target, OpOverload) or torch.Tag.inplace_view in target.tags:
        return None
    name, written = target._overloadpacket.__name__, [a for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
    if not name.endswith("_") or len(written) != 1 or written[0].name != target._schema.arguments[0].name or packet is None:
        return None
    if target._overloadname not in packet.overloads():
        return None
    twin: OpOverload = getattr(packet, target._overloadname)
    same = [a.name for a in twin._schema.arguments] == [a.name for a in target._schema.arguments]
    return twin if same and not twin._schema.is_mutable else None
