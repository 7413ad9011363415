"""Exported programs under the glass: as text, against their rules, and run in float64."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from torchsmith.capture.source import source_line
from torchsmith.errors import VerificationError
from torchsmith.ir.types import SHORT_NAMES

# How far the results of a program, run in float64, may move with its own constants rounded anew: relative, in the 2-norm.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Results = dict[str, Any]


def count(program: ExportedProgram) -> int:
    """How many ops compute something."""
    return sum(node.op == "call_function" and node.target is not operator.getitem for node in program.graph.nodes)


def summary(program: ExportedProgram) -> str:
    nbytes = sum(t.nbytes for t in (*program.state_dict.values(), *program.constants.values()) if isinstance(t, Tensor))
    return f"{count(program)} ops, {nbytes / 2**20:.1f} MiB of parameters"


def to_text(program: ExportedProgram, with_sources: bool = False) -> str:
    """One line a node: `%conv2d: f32[1, 8, 4, 4] = aten.conv2d.default(%x, %weight, …)  # file:line  code`."""
    lines = []
    for spec, node in zip(program.graph_signature.input_specs, program.graph.nodes, strict=False):
        lines.append(f"%{node.name}{_types(node)} = {spec.kind.name.lower()} {spec.target or ''}".rstrip())
    for node in program.graph.nodes:
        if node.op == "call_function":
            arguments = [*map(_shown, node.args), *(f"{name}={_shown(value)}" for name, value in node.kwargs.items())]
            source = source_line(node) if with_sources else None
            called = node.target if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", node.target)
            lines.append(f"%{node.name}{_types(node)} = {called}({', '.join(arguments)})" + (f"  # {source}" if source else ""))
        elif node.op == "output":
            kinds = [spec.kind.name.lower() for spec in program.graph_signature.output_specs]
            lines += [f"{kind} {_shown(value)}" for kind, value in zip(kinds, node.args[0], strict=True)]
    return "\n".join(lines)


def _types(node: fx.Node) -> str:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    shown = [_type(v) for v in values if v is not None]
    return ": " + ", ".join(shown) if shown else ""


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{SHORT_NAMES.get(value.dtype, str(value.dtype))}[{', '.join(map(str, value.shape))}]"
    return str(value)


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_shown, value))}]"
    return f"%{value.name}" if isinstance(value, fx.Node) else str(value)


def verify(program: ExportedProgram, after: str) -> None:
    """Raise VerificationError with every broken rule. after: the stage or pass that made the program."""
    broken = [sentence for rule in RULES for sentence in rule(program)]
    if broken:
        raise VerificationError(f"after {after}:\n  " + "\n  ".join(broken))


def _is_valid(program: ExportedProgram) -> Iterator[str]:
    try:
        program.graph.lint()
        program.validate()  # type: ignore[no-untyped-call]
    except Exception as error:  # torch's verifier raises many kinds, each of which is the answer
        yield f"torch's verifier says: {error}"


def _outputs_are_named(program: ExportedProgram) -> Iterator[str]:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(node, fx.Node) and spec.arg.name != node.name:
            yield f"output %{node.name} is called {spec.arg.name} in the signature"


def _parameters_exist(program: ExportedProgram) -> Iterator[str]:
    for spec in program.graph_signature.input_specs:
        if spec.kind in _LIFTED and spec.target not in program.state_dict and spec.target not in program.constants:
            yield f"%{spec.arg.name} stands for {spec.target}, which the program does not hold"


def _values_are_known(program: ExportedProgram) -> Iterator[str]:
    for node in program.graph.nodes:
        if node.op in ("placeholder", "call_function") and "val" not in node.meta and node.users:
            yield f"%{node.name} ({node.target}) has no value in its meta"


def _types_hold(program: ExportedProgram) -> Iterator[str]:
    """Every node's fake value is what its op gives for the fake values of its arguments."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(node.target, OpOverload) or value is None:
            continue
        if torch.Tag.inplace_view in node.target.tags or torch.Tag.data_dependent_output in node.target.tags:
            continue
        if torch.Tag.dynamic_output_shape in node.target.tags or any("val" not in n.meta for n in node.all_input_nodes):
            continue
        fakes = [v for v in pytree.tree_leaves([value, [n.meta["val"] for n in node.all_input_nodes]]) if isinstance(v, FakeTensor)]
        if not fakes:
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
        with fakes[0].fake_mode, torch.no_grad():
            given = node.target(*args, **kwargs)
        recorded, computed = pytree.tree_leaves(value), pytree.tree_leaves(given)
        if len(recorded) != len(computed) or not all(map(_alike, recorded, computed)):
            yield f"%{node.name} is recorded as{_types(node)[1:]}, and {node.target} gives {', '.join(map(_type, computed))}"


def _alike(a: Any, b: Any) -> bool:
    return _same_type(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else isinstance(a, Tensor) == isinstance(b, Tensor)


def _same_type(a: Tensor, b: Tensor) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    same_sizes = len(a.shape) == len(b.shape) and all(map(statically_known_true, map(operator.eq, a.shape, b.shape)))
    return a.dtype == b.dtype and same_sizes


RULES: tuple[Callable[[ExportedProgram], Iterator[str]], ...] = (
    _is_valid,
    _outputs_are_named,
    _parameters_exist,
    _values_are_known,
    _types_hold,
)

_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class _Double(fx.Interpreter):
    """Runs a graph with every floating dtype in it replaced by float64 (and complex by complex128), where `doubling`."""

    def __init__(self, program: ExportedProgram, doubling: bool, observe: Callable[[fx.Node, Any], None] | None = None) -> None:
        super().__init__(program.graph_module, graph=program.graph)
        self.doubling, self.observe = doubling, observe

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.observe and n.op == "call_function":
            self.observe(n, result)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.doubling and not isinstance(target, torch._ops.HigherOrderOperator):
            args, kwargs = pytree.tree_map_only(torch.dtype, wide, (args, dict(kwargs)))
        return super().call_function(target, args, dict(kwargs))


def wide(dtype: torch.dtype) -> torch.dtype:
    is_wide = dtype.is_floating_point and dtype.itemsize > 1  # floats of eight bits say which numbers there are
    return torch.complex128 if dtype.is_complex else torch.float64 if is_wide else dtype


def results(program: ExportedProgram) -> Results | None:
    """What the program gives for its example inputs, and what it leaves in the tensors that it writes to, by name.

    In float64 where every op takes it: other libraries' ops, and those that quantize, run in the dtypes that they were captured
    with. None where the program came without example inputs.
    """
    if program.example_inputs is None:
        return None
    doubling = _takes_doubles(program)
    inputs = {name: _private(value, doubling) for name, value in _inputs(program).items()}
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    written = [name for name, kind in zip(inputs, kinds, strict=True) if kind in (InputKind.USER_INPUT, InputKind.BUFFER)]
    before = {name: inputs[name].clone() for name in written if isinstance(inputs[name], Tensor)}
    left = dict(inputs)  # what is in the inputs after the call: written in place, or returned for it
    given = _run(program, list(inputs.values()), doubling)
    found: Results = {}
    for spec, value in zip(program.graph_signature.output_specs, given, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            found[f"output {len(found)}"] = value
        else:
            left[spec.target] = value
    changed = {name: left[name] for name, tensor in before.items() if _difference(left[name], tensor) != 0}
    return {**found, **{f"the value left in {name}": value for name, value in changed.items()}}


def _takes_doubles(program: ExportedProgram) -> bool:
    targets = [n.target for n in program.graph.nodes if isinstance(n.target, OpOverload)]
    return all(t.namespace in ("aten", "prims") and "quantize" not in t._overloadpacket.__name__ for t in targets)


def _inputs(program: ExportedProgram) -> dict[str, Any]:
    """Every placeholder's tensor, by the name that mutations are known by: a buffer's own, an input's placeholder."""
    assert program.example_inputs is not None
    users = sum(spec.kind is InputKind.USER_INPUT for spec in program.graph_signature.input_specs)
    flat = program._graph_module_flat_inputs(*program.example_inputs)
    user = iter(flat[len(flat) - users :])
    found: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            found[getattr(spec.arg, "name", "")] = next(user)
        else:
            assert spec.target is not None
            stored = program.state_dict.get(spec.target)
            found[spec.target] = program.constants[spec.target] if stored is None else stored
    return found


def _private(value: Any, doubling: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(wide(value.dtype) if doubling else value.dtype, copy=True)


def _run(program: ExportedProgram, inputs: list[Any], doubling: bool, observe: Callable[[fx.Node, Any], None] | None = None) -> Any:
    default = torch.get_default_dtype()
    try:
        if doubling:
            torch.set_default_dtype(torch.float64)  # for ops that make tensors and say no dtype
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return _Double(program, doubling, observe).run(*inputs)
    finally:
        torch.set_default_dtype(default)


def tolerance(program: ExportedProgram) -> float:
    """What rounding constants anew may change: that of the coarsest dtype among the program's parameters and inputs."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    coarsest = max((TOLERANCES[v.dtype] for v in values if isinstance(v, Tensor) and v.dtype in TOLERANCES), default=1e-5)
    return coarsest if _takes_doubles(program) else 10 * coarsest  # the rest of the program rounds too


def compare(before: Results | None, after: Results | None, by: str, allowed: float) -> None:
    """Raise VerificationError where the results differ by more than `allowed`, relatively. by: the pass between them."""
    if before is None or after is None:
        return
    if before.keys() != after.keys():
        raise VerificationError(f"{by} changed what the program gives: from {', '.join(before)} to {', '.join(after)}")
    for name, wanted in before.items():
        if (error := _difference(after[name], wanted)) > allowed:
            raise VerificationError(
                f"{by} changed {name}: relative error {error:.3g} on the example inputs, {allowed:.1g} is allowed; "
                f"DEBUG=4 shows the program before and after"
            )


def _difference(given: Any, wanted: Any) -> float:
    """‖given − wanted‖ / ‖wanted‖; infinite where anything but numbers differs."""
    if not isinstance(wanted, Tensor) or not isinstance(given, Tensor):
        return 0.0 if type(given) is type(wanted) and given == wanted else float("inf")
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return float("inf")
    kind = torch.complex128 if given.is_complex() else torch.float64
    a, b = given.to(kind), wanted.to(kind)
    odd = ~torch.isfinite(a) | ~torch.isfinite(b)
    if not torch.equal(a[odd].nan_to_num(nan=1.5), b[odd].nan_to_num(nan=1.5)):
        return float("inf")
    distance, size = (float(torch.linalg.vector_norm(t)) for t in (a[~odd] - b[~odd], b[~odd]))
    return distance / size if size else distance


def statistics(program: ExportedProgram) -> str:
    """One line a node: the mean, least and greatest number that it computes for the example inputs, in the program's dtypes."""
    if program.example_inputs is None:
        return "the program has no example inputs to run"
    lines: list[str] = []

    def observe(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() and not value.is_complex():
            numbers = value.double()
            lines.append(
                f"%{node.name:<40} mean {numbers.mean():12.5g}  least {numbers.min():12.5g}  greatest {numbers.max():12.5g}"
            )

    _run(program, [_private(value, False) for value in _inputs(program).values()], False, observe)
    return "\n".join(lines)
