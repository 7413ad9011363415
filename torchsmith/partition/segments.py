"""Which nodes run in engines, which stay in PyTorch, and why."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.capture.source import source_line
from torchsmith.config import PartitionConfig
from torchsmith.convert import Converter, is_named, probe, types_of
from torchsmith.errors import FullCompilationRequired, Unsupported
from torchsmith.ir.graph import Node
from torchsmith.lower.editing import copied, settled

Refuses = Callable[[Node], "str | None"]


@dataclass(frozen=True)
class Refusal:
    """A node that stays in PyTorch. where: the user's source line, or "" where the program has none."""

    node: str
    op: str
    reason: str
    where: str


@dataclass(frozen=True)
class Segment:
    """A run of nodes for one engine, with the tensors that go in and come out."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Partitioned:
    program: ExportedProgram
    segments: tuple[Segment, ...]
    refusals: tuple[Refusal, ...]

    @property
    def in_torch(self) -> dict[str, str]:
        """Why nodes stay in PyTorch, by their names."""
        return {refusal.node: refusal.reason for refusal in self.refusals}


def partition(program: ExportedProgram, refuses: Refuses, config: PartitionConfig) -> Partitioned:
    """Cut the program into the largest segments that have no cycle between them.

    refuses: the backend's word on one IR node. Raises FullCompilationRequired where the config asks for no fallback.
    """
    reasons = _reasons(program, refuses, config)
    if reasons and config.require_full_compilation:
        refusals = _refusals(program, reasons)
        listed = "\n".join(f"  {r.op}: {r.reason}" + (f" ({r.where})" if r.where else "") for r in refusals)
        raise FullCompilationRequired(f"require_full_compilation=True, and {len(refusals)} ops would stay in PyTorch:\n{listed}")
    groups = _by_level(program, reasons)
    if len(groups) > 1 and (shared := _shared_constants(program, groups)):
        return partition(_repeated(program, shared), refuses, config)
    if len(groups) > 1 or reasons:
        for nodes in groups:
            if len(nodes) < config.min_block_size:
                reason = f"its block has {len(nodes)} ops, and min_block_size is {config.min_block_size}"
                reasons.update({node: reason for node in nodes})
        groups = [nodes for nodes in groups if len(nodes) >= config.min_block_size]
    return Partitioned(program, tuple(_segment(program, nodes) for nodes in groups), _refusals(program, reasons))


def _refusals(program: ExportedProgram, reasons: dict[fx.Node, str]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(node.name, str(node.target), reasons[node], source_line(node) or "")
        for node in program.graph.nodes
        if node in reasons and node.target is not operator.getitem
    )


def _is_size(node: fx.Node) -> bool:
    """Whether a node computes with sizes; converters read sizes off shapes, so no engine needs it."""
    value = node.meta.get("val")
    return value is not None and not isinstance(value, (Tensor, tuple, list))


def _reasons(program: ExportedProgram, refuses: Refuses, config: PartitionConfig) -> dict[fx.Node, str]:
    """Every node that no engine takes, with the sentence that says why."""
    converter, reasons = Converter(program), dict[fx.Node, str]()
    for node in program.graph.nodes:
        if node.op != "call_function" or _is_size(node):
            continue
        if node.target is operator.getitem:
            if node.args[0] in reasons:
                reasons[node] = reasons[node.args[0]]
            continue
        if is_named(node, config.torch_executed_ops):
            reasons[node] = "torch_executed_ops names it"
            continue
        try:
            graph = probe(converter, node)
            types_of(node)
        except Unsupported as refusal:
            reasons[node] = str(refusal)
            continue
        if reason := next((r for n in graph.nodes if (r := refuses(n))), None):
            reasons[node] = reason
    return reasons


def _by_level(program: ExportedProgram, reasons: dict[fx.Node, str]) -> list[list[fx.Node]]:
    """Group the nodes for engines so that no group depends on itself through PyTorch.

    A node's level is how often the way to it from the inputs changes sides at most; nodes of one level and side depend on
    each other only within the level. What is made of constants alone, such as a weight's quantization, goes with what takes it.
    """
    level: dict[fx.Node, int] = {}
    inner: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            level[node] = 0
            continue
        inside = node not in reasons and not _is_size(node)
        level[node] = 0 if inside else 1
        for source in node.all_input_nodes:
            if source.op != "call_function" or (inside and _is_size(source)):
                continue
            source_inside = source not in reasons and not _is_size(source)
            level[node] = max(level[node], level[source] + (inside != source_inside))
        if inside:
            inner.append(node)
    members, constant = set(inner), _of_constants(program, inner)
    for node in reversed(inner):
        if node in constant and node.users and members.issuperset(node.users):
            level[node] = min(level[user] for user in node.users)
    taken: dict[int, list[fx.Node]] = {}
    for node in inner:
        taken.setdefault(level[node], []).append(node)
    return [nodes for _, nodes in sorted(taken.items())]


def _of_constants(program: ExportedProgram, nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes whose inputs are parameters, and what such nodes give."""
    known, found = set(Converter(program).parameters), set[fx.Node]()
    for node in nodes:
        if all(source.name in known or source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _shared_constants(program: ExportedProgram, groups: list[list[fx.Node]]) -> dict[str, list[list[str]]]:
    """The nodes made of constants that several groups take, by name: those of each group that do, the node's own group first."""
    number = {node: index for index, nodes in enumerate(groups) for node in nodes}
    found = {}
    for node in _of_constants(program, list(number)):
        takers: dict[int, list[str]] = {number[node]: []}
        for user in node.users:
            if user in number:
                takers.setdefault(number[user], []).append(user.name)
        if len(takers) > 1:
            found[node.name] = list(takers.values())
    return found


def _repeated(program: ExportedProgram, shared: dict[str, list[list[str]]]) -> ExportedProgram:
    """The program with each of these nodes once for every group: an engine multiplies in eight bits with its own constants only."""
    program = copied(program)
    nodes = {node.name: node for node in program.graph.nodes}
    for name, (_, *others) in shared.items():
        for takers in others:
            with program.graph.inserting_before(nodes[name]):
                again = program.graph.node_copy(nodes[name], lambda node: node)
            for taker in takers:
                nodes[taker].replace_input_with(nodes[name], again)
    program.graph.lint()
    program.graph_module.recompile()
    return settled(program)


def _segment(program: ExportedProgram, nodes: list[fx.Node]) -> Segment:
    members = set(nodes)
    lifted = set(Converter(program).parameters)
    inputs = dict.fromkeys(
        source
        for node in nodes
        for source in node.all_input_nodes
        if source not in members and source.name not in lifted and isinstance(source.meta.get("val"), Tensor)
    )
    outputs = [node for node in nodes if any(user not in members for user in node.users) and isinstance(node.meta["val"], Tensor)]
    for carrier in _carriers(program, nodes, list(inputs)):
        inputs.setdefault(carrier)
    return Segment(tuple(nodes), tuple(inputs), tuple(outputs))


def _carriers(program: ExportedProgram, nodes: list[fx.Node], inputs: list[fx.Node]) -> list[fx.Node]:
    """Inputs of the program whose shapes have the symbols that the segment needs and its own inputs do not show."""

    def plain(node: fx.Node) -> set[str]:
        (type,) = types_of(node)
        return {str(size) for size in type.shape if not isinstance(size, int) and size.is_Symbol}

    needed: set[str] = set()
    for node in (*nodes, *inputs):
        for source in (node, *node.all_input_nodes):
            value = source.meta.get("val")
            for part in value if isinstance(value, (tuple, list)) else (value,):
                for size in part.shape if isinstance(part, Tensor) else (part,):  # those that engines do not know, too
                    needed |= {s.name for s in size.node.expr.free_symbols} if isinstance(size, torch.SymInt) else set()
    known = set().union(*map(plain, inputs), set())
    users = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    chosen = []
    for node in program.graph.nodes:
        if (
            node.op == "placeholder"
            and node.name in users
            and isinstance(node.meta.get("val"), Tensor)
            and plain(node) & (needed - known)
        ):
            known |= plain(node)
            chosen.append(node)
    return chosen
