"""Put engines into a program, each in the place of the nodes that it computes."""

from __future__ import annotations

import copy
import heapq
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, TensorArgument

from torchsmith.errors import BuildError

Splice: TypeAlias = "tuple[Sequence[fx.Node], Sequence[fx.Node], Sequence[fx.Node], Tensor, str]"
"""The nodes that an engine replaces, its inputs and outputs among the program's nodes, its bytes (1-D uint8), its spec string."""

_LIFTED = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ}
_MUTATIONS = {kind for kind in OutputKind if kind.name in ("BUFFER_MUTATION", "PARAMETER_MUTATION")}
_HEAVY_META = ("from_node", "source_fn_stack")  # the history of every pass: megabytes in a saved program


def splice(program: ExportedProgram, segments: Sequence[Splice]) -> ExportedProgram:
    """A program where each segment is one call of `torchsmith::execute_engine`; the one passed in stays as it is.

    The engines become lifted constants `engine_0`, `engine_1`, …. Parameters, buffers and constants that nothing needs any
    more are dropped. The call's signature, ranges and fake values are those of the original. Where a segment's outputs feed
    a `view`, that becomes a `reshape`: an engine gives contiguous tensors, whatever strides the original's had.
    Raises BuildError where the segments wait for each other in a circle, or an engine's outputs are not what its nodes gave.
    """
    state = dict(program.state_dict)
    constants = dict(program.constants)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    engines: list[tuple[fx.Node, str]] = []
    lifted = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in (*_LIFTED, InputKind.TOKEN)}
    for unit in _in_order(program.graph, segments):
        if segments and not engines and (isinstance(unit, int) or unit.name not in lifted):
            engines = _lift_engines(program, graph, constants, segments)  # after the other constants, before the user's inputs
        if isinstance(unit, int):
            _call_engine(graph, copies, segments[unit], engines[unit][0])
        else:
            _copy(graph, copies, unit, reshape=bool(segments))
    graph.eliminate_dead_code()
    specs = list(program.graph_signature.input_specs)
    at = next(i for i, n in enumerate(graph.nodes) if n is engines[0][0]) if engines else 0
    specs[at:at] = [InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=node.name), name) for node, name in engines]
    specs = _drop_unused(graph, specs, program.graph_signature.output_specs, state, constants)
    spliced = ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(specs, copy.deepcopy(program.graph_signature.output_specs)),
        state_dict=state,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=_call_graph(program),
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )
    if hasattr(program, "_guards_code"):
        spliced._guards_code = list(program._guards_code)
    return spliced


def _in_order(graph: fx.Graph, segments: Sequence[Splice]) -> list[fx.Node | int]:
    """Nodes outside segments, and segments by number, so that each comes after what it needs and else in the old order.

    Nodes that write in place keep their places among the nodes outside.
    """
    unit_of: dict[fx.Node, fx.Node | int] = {node: number for number, segment in enumerate(segments) for node in segment[0]}
    needs: dict[fx.Node | int, dict[fx.Node | int, None]] = {}
    rank: dict[fx.Node | int, int] = {}
    barrier: fx.Node | None = None
    since: list[fx.Node] = []
    for index, node in enumerate(graph.nodes):
        unit = unit_of.setdefault(node, node)
        rank.setdefault(unit, index)
        before = needs.setdefault(unit, {})
        if isinstance(unit, int):
            continue
        before.update({unit_of[source]: None for source in node.all_input_nodes})
        before.update({} if barrier is None else {barrier: None})
        if _writes(node):
            before.update(dict.fromkeys(since))
            barrier, since = node, []
        since.append(node)
    for number, segment in enumerate(segments):  # and not sizes that its nodes take: an engine reads those off shapes
        needs[number].update({unit_of[source]: None for source in segment[1]})
    users: dict[fx.Node | int, list[fx.Node | int]] = {unit: [] for unit in needs}
    for unit, sources in needs.items():
        for source in sources:
            users[source].append(unit)
    waits = {unit: len(sources) for unit, sources in needs.items()}
    ready = [(rank[unit], unit) for unit, count in waits.items() if not count]  # ranks differ, so units are never compared
    heapq.heapify(ready)
    order: list[fx.Node | int] = []
    while ready:
        unit = heapq.heappop(ready)[1]
        order.append(unit)
        for user in users[unit]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, (rank[user], user))
    if len(order) < len(needs):
        stuck = [unit for unit in needs if isinstance(unit, int) and waits[unit]]
        raise BuildError(
            f"segments {stuck} wait for their own outputs through PyTorch; this is a fault of the partition, please report it"
        )
    return order


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _lift_engines(
    program: ExportedProgram, graph: fx.Graph, constants: dict[str, Any], segments: Sequence[Splice]
) -> list[tuple[fx.Node, str]]:
    """A constant placeholder for each engine, and the name of the constant."""
    taken = {*constants, *program.state_dict, *(node.name for node in program.graph.nodes)}
    mode, lifted, number = _fake_mode(program), list[tuple[fx.Node, str]](), 0
    for _, _, _, engine, _ in segments:
        while {f"engine_{number}", f"c_engine_{number}"} & taken:
            number += 1
        name = f"engine_{number}"
        number += 1
        node = graph.placeholder(f"c_{name}")
        with mode:
            node.meta["val"] = torch.empty(engine.shape, dtype=engine.dtype)
        constants[name] = engine
        lifted.append((node, name))
    return lifted


def _fake_mode(program: ExportedProgram) -> Any:
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    return detect_fake_mode([node.meta.get("val") for node in program.graph.nodes]) or FakeTensorMode()


def _copy(graph: fx.Graph, copies: dict[fx.Node, fx.Node], node: fx.Node, reshape: bool) -> None:
    new = graph.node_copy(node, copies.__getitem__)
    new.name = node.name  # the signature's names, also those that fx would not choose itself
    for key in _HEAVY_META:
        new.meta.pop(key, None)
    if reshape and new.target is torch.ops.aten.view.default:
        new.target = torch.ops.aten.reshape.default
    copies[node] = new


def _call_engine(graph: fx.Graph, copies: dict[fx.Node, fx.Node], segment: Splice, constant: fx.Node) -> None:
    _, inputs, outputs, _, spec = segment
    args = ([copies[node] for node in inputs], constant, spec)
    call = graph.call_function(torch.ops.torchsmith.execute_engine.default, args)
    mode = constant.meta["val"].fake_mode
    with mode:
        values = call.target([node.meta["val"] for node in args[0]], constant.meta["val"], spec)  # type: ignore[operator]
    call.meta["val"] = values
    _check(values, outputs, spec)
    for number, (old, value) in enumerate(zip(outputs, values, strict=True)):
        new = graph.call_function(operator.getitem, (call, number))
        new.meta.update({key: meta for key, meta in old.meta.items() if key not in _HEAVY_META}, val=value)
        new.name = old.name
        copies[old] = new


def _check(values: Sequence[Tensor], outputs: Sequence[fx.Node], spec: str) -> None:
    if len(values) != len(outputs):
        raise BuildError(f"an engine gives {len(values)} tensors where its segment has {len(outputs)} outputs; its spec: {spec}")
    for value, old in zip(values, outputs, strict=True):
        want = old.meta["val"]
        fixed = all(
            a == b
            for a, b in zip(value.shape, want.shape, strict=False)
            if not isinstance(a, torch.SymInt) and not isinstance(b, torch.SymInt)
        )
        if value.dtype != want.dtype or value.dim() != want.dim() or not fixed:
            raise BuildError(
                f"an engine gives {value.dtype} of shape {tuple(value.shape)} for {old.name}, "
                f"and the program has {want.dtype} of shape {tuple(want.shape)} there"
            )


def _drop_unused(
    graph: fx.Graph, specs: list[InputSpec], outputs: Sequence[Any], state: dict[str, Any], constants: dict[str, Any]
) -> list[InputSpec]:
    """Erase lifted placeholders without users. Returns the specs that stay; `state` and `constants` lose what no spec names."""
    written = {spec.target for spec in outputs if spec.kind in _MUTATIONS}
    kept = []
    for node, spec in zip(list(graph.nodes), specs, strict=False):
        assert node.op == "placeholder" and node.name == spec.arg.name, (node.format_node(), spec)
        if spec.kind in _LIFTED and not node.users and spec.target not in written:
            graph.erase_node(node)
        else:
            kept.append(copy.copy(spec))
    named = {spec.target for spec in kept}
    for table in (state, constants):
        for name in [name for name in table if name not in named]:
            del table[name]
    return kept


def _call_graph(program: ExportedProgram) -> list[Any]:
    """The call graph, where only the root keeps its signature: other modules' inputs and outputs may be inside engines."""
    root, *others = program.module_call_graph
    return [copy.copy(root), *(type(entry)(fqn=entry.fqn, signature=None) for entry in others)]
