"""A backend whose engines are JSON that names ATen ops, and programs with its engines in them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, export

from torchsmith import backends
from torchsmith.partition.splice import splice
from torchsmith.runtime import engine_op  # noqa: F401 - registers the op
from torchsmith.runtime.spec import EngineSpec, TensorSpec
from torchsmith.runtime.tensors import engine_tensor
from torchsmith.target import Target


class ToyBackend:
    """Counts the engines that it loads."""

    name = "toy"

    def __init__(self) -> None:
        self.loads = 0

    def available(self) -> str | None:
        return None

    def excludes(self, target: Target) -> str | None:
        return None

    def load(self, engine: bytes, target: Target) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        self.loads += 1
        return Runner(json.loads(engine))


class Runner:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.weights = {int(i): torch.tensor(w["data"], dtype=getattr(torch, w["dtype"])) for i, w in plan["weights"].items()}
        self.plan = plan

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        values: dict[int, Any] = {**self.weights, **dict(enumerate(inputs))}

        def read(arg: Any) -> Any:
            if isinstance(arg, list):
                return [read(a) for a in arg]
            if isinstance(arg, dict):
                return (
                    values[arg["%"]]
                    if "%" in arg
                    else getattr(torch, arg["torch"])
                    if "torch" in arg
                    else torch.device(arg["device"])
                )
            return arg

        for op, args, kwargs, out in self.plan["steps"]:
            target = torch.ops.aten
            for part in op.split(".")[1:]:
                target = getattr(target, part)
            values[out] = target(*read(args), **read_all(kwargs, read))
        return [values[i].clone(memory_format=torch.contiguous_format) for i in self.plan["outputs"]]


def read_all(kwargs: dict[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: read(value) for name, value in kwargs.items()}


def install() -> ToyBackend:
    """Make "toy" a backend of this process."""
    module = types.ModuleType("torchsmith.backends.toy")
    module.BACKEND = backend = ToyBackend()  # type: ignore[attr-defined]
    sys.modules["torchsmith.backends.toy"] = module
    for device, names in backends.DEVICES.items():
        if "toy" not in names:
            backends.DEVICES[device] = (*names, "toy")
    return backend


BACKEND = install()


def dims(tensor: Tensor) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)


def segment_of(program: ExportedProgram, nodes: Sequence[fx.Node]) -> tuple[Any, ...]:
    """These nodes as a segment for `splice`, their weights inside the engine."""
    members = set(nodes)
    lifted = {**program.constants, **program.state_dict}
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target in lifted}
    sources = dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in members)
    inputs = [s for s in sources if s.name not in targets]
    outputs = [n for n in nodes if any(user not in members for user in n.users)]
    number = {node: i for i, node in enumerate([*inputs, *(s for s in sources if s.name in targets), *nodes])}
    weights = {
        number[s]: {"data": lifted[targets[s.name]].tolist(), "dtype": str(lifted[targets[s.name]].dtype)[6:]}
        for s in sources
        if s not in inputs
    }

    def write(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return {"%": number[arg]}
        if isinstance(arg, (torch.dtype, torch.memory_format, torch.layout)):
            return {"torch": str(arg)[6:]}
        if isinstance(arg, torch.device):
            return {"device": str(arg)}
        return [write(a) for a in arg] if isinstance(arg, (list, tuple)) else arg

    steps = [[str(n.target), write(n.args), {k: write(v) for k, v in n.kwargs.items()}, number[n]] for n in nodes]
    engine = json.dumps({"weights": weights, "steps": steps, "outputs": [number[n] for n in outputs]}).encode()
    types_in, types_out = ([TensorSpec(dims(n.meta["val"]), n.meta["val"].dtype) for n in side] for side in (inputs, outputs))
    return list(nodes), inputs, outputs, engine_tensor(engine), EngineSpec.of("toy", engine, types_in, types_out).to_json()


def nodes_of(program: ExportedProgram, *names: str) -> list[fx.Node]:
    """Call nodes by name, in the program's order; all of them where no name is given."""
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    return [n for n in calls if n.name in names] if names else calls


def hybrid(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    engines: Sequence[Sequence[str]] = ((),),
    **options: Any,
) -> ExportedProgram:
    """Export a module and put toy engines where `engines` names nodes; the default is one engine for everything."""
    with torch.no_grad():
        program = export(module.eval(), args, kwargs, **options)
    return splice(program, [segment_of(program, nodes_of(program, *names)) for names in engines])
