"""TorchScript's graphs as lists of Python steps over a frame of slots, one slot a value."""

from __future__ import annotations

import builtins
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.traceback as fx_traceback

from torchsmith.capture.script_ops import ENUMS, ON_SIZES, ON_TENSORS, PLAIN, Number
from torchsmith.capture.source import frames, innermost
from torchsmith.errors import CaptureError

Frame = list[Any]
Step = Callable[[Frame], None]

_CALL = "torchsmith::CallMethod"  # what prim::CallMethod is called while functions are inlined and methods are not
_OPTIMIZED = "; pass the module as it was before torch.jit.optimize_for_inference"
_running = threading.local()  # .lines: where the calls that are running come from, outermost first; .last: the last operator


class NotConvertible(CaptureError):
    """A ScriptModule does what an exported program cannot: it keeps state, looks at values, or uses what only TorchScript has.

    `torchsmith.capture.split` then finds the submodules that can be exported. where: the line that does it, "" where TorchScript
    does not know.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.where = last_line() or ""


@dataclass
class Code:
    """One method, ready to run.

    constants: a frame with the constants in their slots. tensors: slots that want a tensor constant, with it. arguments, result:
    slots. tensor: whether the result is to be a tensor.
    """

    tensor: bool
    constants: Frame = field(default_factory=list)
    tensors: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    result: int = 0
    steps: list[Step] = field(default_factory=list)

    def frame(self, args: tuple[Any, ...]) -> Frame:
        frame = self.constants.copy()
        for slot, value in zip(self.arguments, args, strict=True):
            frame[slot] = value
        return frame

    def run(self, frame: Frame) -> Any:
        for step in self.steps:
            step(frame)
        return _as_tensor(frame[self.result]) if self.tensor else frame[self.result]


def translate(method: Any) -> Code:
    """Read a `torch._C.ScriptMethod`. What cannot be run is refused when it is reached, not here."""
    graph = method.graph.copy()
    _inline_functions(graph)
    reader = _Reader(Code(str(method.schema.returns[0].type) == "Tensor"))
    reader.code.arguments = [reader.slot(v) for v in graph.inputs()]
    reader.code.steps = reader.block(graph)
    (result,) = graph.outputs()
    reader.code.result = reader.slot(result)
    return reader.code


def _inline_functions(graph: Any) -> None:
    """Replace calls of functions by their bodies, and leave calls of methods, which are where the submodules are."""
    if not graph.findAllNodes("prim::CallFunction"):
        return
    for node in graph.findAllNodes("prim::CallMethod"):
        hidden = graph.create(_CALL, list(node.inputs()), node.outputsSize())
        hidden.copyAttributes(node)
        hidden.copyMetadata(node)
        hidden.insertBefore(node)
        for old, new in zip(list(node.outputs()), list(hidden.outputs()), strict=True):
            new.setType(old.type())
            old.replaceAllUsesWith(new)
        node.destroy()
    torch._C._jit_pass_inline(graph)


class _Reader:
    """Turns nodes into steps, and hands out slots by the values' names, which are unique in a graph."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.slots: dict[str, int] = {}
        self.numbers: dict[int, Any] = {}  # the value of each 0-d tensor constant, by its slot

    def slot(self, value: Any) -> int:
        name = value.debugName()
        if name not in self.slots:
            self.slots[name] = len(self.slots)
            self.code.constants.append(None)
        return self.slots[name]

    def block(self, block: Any) -> list[Step]:
        steps = []
        for node in block.nodes():
            ins, outs = [self.slot(v) for v in node.inputs()], [self.slot(v) for v in node.outputs()]
            if node.kind() == "prim::Constant":
                self.constant(node, outs[0])
                continue
            space, _, name = node.kind().partition("::")
            read = getattr(self, name, None) if space in ("prim", "torchsmith") else None
            steps.append(read(node, ins, outs) if read else self.operator(node, ins, outs))
        return steps

    def constant(self, node: Any, out: int) -> None:
        value = node.output().toIValue()
        if isinstance(value, torch.Tensor):
            if value.is_mkldnn:
                _running.last = _source(node)
                raise NotConvertible(f"the ScriptModule has weights in oneDNN's own layout{_OPTIMIZED}")
            self.code.tensors.append((out, value.detach()))
            if value.dim() == 0 and value.device.type == "cpu" and not value.is_complex():
                self.numbers[out] = value.item()
        self.code.constants[out] = value

    def If(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        arms = []
        for block in node.blocks():
            steps = self.block(block)
            arms.append((steps, [self.slot(v) for v in block.outputs()]))
        (condition,), (yes, no) = ins, arms

        def step(frame: Frame) -> None:
            steps, results = yes if frame[condition] else no
            for inner in steps:
                inner(frame)
            _assign(frame, outs, [frame[r] for r in results])

        return step

    def Loop(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        (block,) = node.blocks()
        index, *carried = [self.slot(v) for v in block.inputs()]
        steps = self.block(block)
        again, *results = [self.slot(v) for v in block.outputs()]
        trips, condition, *initial = ins

        def step(frame: Frame) -> None:
            _assign(frame, carried, [frame[i] for i in initial])
            count, going, most = 0, frame[condition], frame[trips]
            while going and count < most:
                frame[index] = count
                for inner in steps:
                    inner(frame)
                _assign(frame, carried, [frame[r] for r in results])
                going, count = frame[again], count + 1
            _assign(frame, outs, [frame[c] for c in carried])

        return step

    def GetAttr(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        name, (owner,), (out,), source = node.s("name"), ins, outs, _source_of_read(node)

        def step(frame: Frame) -> None:
            thing = frame[owner]
            _running.last = source
            frame[out] = thing.ts_read(name) if hasattr(thing, "ts_read") else getattr(thing, name)

        return step

    def SetAttr(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        name, (owner, value), source = node.s("name"), ins, _source(node)

        def step(frame: Frame) -> None:
            _running.last = source
            frame[owner].ts_write(name, frame[value])

        return step

    def CallMethod(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        name, (owner, *arguments), source = node.s("name"), ins, _source(node)

        def step(frame: Frame) -> None:
            thing, given = frame[owner], [frame[a] for a in arguments]
            lines = _running.__dict__.setdefault("lines", [])
            lines.append(source)
            try:
                if name != "forward" and hasattr(thing, "ts_call"):
                    result = thing.ts_call(name, tuple(given))
                else:
                    result = thing(*given) if name == "forward" else getattr(thing, name)(*given)
            finally:
                lines.pop()
            _spread(frame, outs, result)

        return step

    def TupleUnpack(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        (source,) = ins
        return lambda frame: _assign(frame, outs, list(frame[source]))

    ListUnpack = TupleUnpack

    def TupleIndex(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        (items, index), (out,) = ins, outs

        def step(frame: Frame) -> None:
            frame[out] = frame[items][frame[index]]

        return step

    def TupleSlice(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        (items,), (out,), begin, end = ins, outs, node.i("beg"), node.i("end")

        def step(frame: Frame) -> None:
            frame[out] = frame[items][begin:end]

        return step

    def ConstantChunk(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        (source,), chunks, dim = ins, node.i("chunks"), node.i("dim")
        return lambda frame: _assign(frame, outs, list(torch.chunk(frame[source], chunks, dim)))

    def RaiseException(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        message, *kind = ins

        def step(frame: Frame) -> None:
            name = str(frame[kind[0]]).rpartition(".")[2] if kind and frame[kind[0]] else "RuntimeError"
            raised = getattr(builtins, name, RuntimeError)
            raise (raised if isinstance(raised, type) and issubclass(raised, Exception) else RuntimeError)(frame[message])

        return step

    def operator(self, node: Any, ins: list[int], outs: list[int]) -> Step:
        """Any other node: an operator, found by its schema."""
        schema = _Schema.of(node)
        opaque = "mkldnn" in node.kind() and node.kind() not in ON_TENSORS
        call = None if opaque else _operator(node.kind(), schema)
        if call is None:
            kind = node.kind() + (f".{schema.overload}" if schema and schema.overload else "")
            advice, source = _OPTIMIZED if "mkldnn" in kind.lower() else "", _source(node)

            def refuse(frame: Frame) -> None:
                _running.last = source
                raise NotConvertible(f"TorchScript's {kind} has no counterpart that export can trace{advice}")

            return refuse
        if schema is None or call in (PLAIN.get(node.kind()), PLAIN.get(schema.qualified)):
            return lambda frame: _spread(frame, outs, call(*[frame[i] for i in ins]))
        return self.tensor_operator(node, schema, call, ins, outs)

    def tensor_operator(self, node: Any, schema: _Schema, call: Callable[..., Any], ins: list[int], outs: list[int]) -> Step:
        on_sizes, source, numbers = ON_SIZES.get(node.kind()), _source(node), self.numbers
        native = not isinstance(call, torch._ops.OpOverload)  # ours take TorchScript's own numbers for dtypes
        positional = schema.positional

        def step(frame: Frame) -> None:
            values = [frame[i] for i in ins]
            if any(isinstance(values[i], Number) for i in schema.tensors):
                known = [numbers.get(slot, v) for slot, v in zip(ins, values, strict=True)]
                if on_sizes and all(not isinstance(known[i], torch.Tensor) for i in schema.tensors):
                    _spread(
                        frame, outs, on_sizes(*known[:positional], **dict(zip(schema.keywords, known[positional:], strict=True)))
                    )
                    return
                if not native or on_sizes:
                    values = [_as_tensor(v) if i in schema.tensors else v for i, v in enumerate(values)]
            if not native:
                for i in schema.lists:
                    values[i] = [_as_tensor(v) for v in values[i]]
                for i, table in schema.enums:
                    values[i] = table[values[i]] if isinstance(values[i], int) else values[i]
            _mark(source)
            result = call(*values[:positional], **dict(zip(schema.keywords, values[positional:], strict=True)))
            _spread(frame, outs, result)

        return step


@dataclass(frozen=True)
class _Schema:
    """What a step needs of an operator's schema: names, and which arguments are tensors, lists of them or enumerations."""

    qualified: str
    overload: str
    positional: int
    keywords: tuple[str, ...]
    tensors: tuple[int, ...]
    lists: tuple[int, ...]
    enums: tuple[tuple[int, dict[int, Any]], ...]
    on_tensors: bool

    @staticmethod
    def of(node: Any) -> _Schema | None:
        text = node.schema()
        if text == "(no schema)":
            return None
        schema = torch._C.parse_schema(text)
        kinds = [str(a.type) for a in schema.arguments]
        keywords = tuple(a.name for a in schema.arguments if a.kwarg_only)
        return _Schema(
            f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name,
            schema.overload_name,
            len(kinds) - len(keywords),
            keywords,
            tuple(i for i, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")),
            tuple(i for i, kind in enumerate(kinds) if kind == "List[Tensor]"),
            tuple((i, ENUMS[a.name]) for i, a in enumerate(schema.arguments) if a.name in ENUMS),
            "Tensor" in text,
        )


def _operator(kind: str, schema: _Schema | None) -> Callable[..., Any] | None:
    if schema is None or not schema.on_tensors:
        return PLAIN.get(schema.qualified if schema else kind) or PLAIN.get(kind)
    if kind == "prim::NumToTensor" or kind.startswith("prim::unchecked"):
        return PLAIN[kind]
    if own := ON_TENSORS.get(schema.qualified) or ON_TENSORS.get(kind):
        return own
    namespace, _, name = kind.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace != "prim" else None
    found: Callable[..., Any] | None = getattr(packet, schema.overload or "default", None)
    return found


def _assign(frame: Frame, slots: list[int], values: list[Any]) -> None:
    for slot, value in zip(slots, values, strict=True):
        frame[slot] = value


def _spread(frame: Frame, outs: list[int], result: Any) -> None:
    if len(outs) == 1:
        frame[outs[0]] = result
    elif outs:
        _assign(frame, outs, list(result))


def _as_tensor(value: Any) -> Any:
    """A number that stands for a 0-d tensor, as that tensor."""
    if not isinstance(value, Number):
        return value
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    return torch.scalar_tensor(value, dtype=torch.int64 if whole else torch.bool if isinstance(value, bool) else torch.float64)


def _mark(source: str) -> None:
    """Give what is traced next this place in the TorchScript source."""
    _running.last = source
    if fx_traceback.has_preserved_node_meta():
        lines = [*_running.__dict__.get("lines", []), source]
        fx_traceback.set_stack_trace(["\n".join(line for line in lines if line)])


def last_line() -> str | None:
    """The TorchScript line of the operator that this thread ran last."""
    return innermost(frames(_running.__dict__.get("last", "")))


_SCRIPTED = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TRACED = re.compile(r"^(?P<file>[^\s()]+)\((?P<line>\d+)\): (?P<function>\S+)$", re.MULTILINE)


def _source_of_read(node: Any) -> str:
    """The place of a prim::GetAttr, which TorchScript notes only for what takes the value."""
    return _source(node) or next((text for use in node.output().uses() if (text := _source(use.user))), "")


def _source(node: Any) -> str:
    """Where a node comes from, written as Python writes a stack; "" where TorchScript does not know."""
    text = node.sourceRange()
    if match := _SCRIPTED.search(text):
        lines = text[match.end() :].splitlines()
        marks = [i for i, line in enumerate(lines) if set(line.replace("<--- HERE", "").strip()) == {"~"}]
        code = lines[marks[0] - 1].strip() if marks and marks[0] else ""
        return f'  File "{match["file"]}", line {match["line"]}, in forward\n    {code}'
    frames = [f'  File "{m["file"]}", line {m["line"]}, in {m["function"]}' for m in _TRACED.finditer(text)]
    return "\n".join(reversed(frames))
