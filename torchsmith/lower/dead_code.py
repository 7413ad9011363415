"""What nothing needs goes: nodes without users, and the parameters that only they had."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from torchsmith.lower.editing import Lowering, settled


def dead_code(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """The user's inputs stay, used or not, and so do asserts and buffers that the program writes to."""
    graph, signature = program.graph, program.graph_signature
    graph.eliminate_dead_code()
    written = {spec.target for spec in signature.output_specs if spec.target is not None}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for spec in list(signature.input_specs):
        lifted = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        if lifted and spec.target not in written and not placeholders[spec.arg.name].users:
            graph.erase_node(placeholders[spec.arg.name])
            signature.input_specs.remove(spec)
    needed = {spec.target for spec in signature.input_specs} | written
    for tensors in (program.state_dict, program.constants):
        for name in [name for name in tensors if name not in needed]:
            del tensors[name]
    return settled(program)
