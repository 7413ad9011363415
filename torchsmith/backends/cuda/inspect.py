"""An engine's steps as rows for people: what each does, where, on how many bytes, and how near it is to what the GPU can do."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from torchsmith import sizes
from torchsmith.backends.cuda.plan import CallStep, LaunchStep, Plan, PlannedValue, Variant, read
from torchsmith.backends.cuda.roofline import USUAL, Chip, chip_named
from torchsmith.backends.cuda.tactics import SPARSE
from torchsmith.errors import InvalidOption
from torchsmith.ir.types import SHORT_NAMES

if TYPE_CHECKING:
    from torchsmith.backends.cuda.run import CudaRunner, Instance

REPLAYS = 15
OF_EIGHT_BITS = ("IntegerLinear", "IntegerConvolution", "Float8Linear", "Float8Attention")  # ops that multiply such numbers


@dataclass(frozen=True)
class Sparsity:
    """How a node with 2:4 weights runs. sparse: whether on sparse tensor cores. sparse_us, dense_us: of the fastest tactic of each
    kind, timed alone when the engine was built; None where none was. against: why there is no sparse one, or empty.
    """

    sparse: bool
    sparse_us: float | None
    dense_us: float | None
    against: str

    @property
    def gain(self) -> float | None:
        """Times as fast as dense; below 1 where dense is faster."""
        return self.dense_us / self.sparse_us if self.dense_us and self.sparse_us else None


@dataclass(frozen=True)
class StepRow:
    """One step. grid: blocks; empty of an op of PyTorch's. bytes: read and written, each element counted once. flops: of matrix
    products. microseconds: by the source `timed` ("measured" in this engine, "tuned" alone when it was built, or ""), None where
    nobody measured. least_us: what the GPU would take at best; None of one that is not known. origin: the user's line. sparsity:
    None of what has no 2:4 weights.
    """

    number: int
    op: str
    tactic: str
    kernel: str
    grid: tuple[int, ...]
    output: str
    bytes: int
    flops: int
    microseconds: float | None
    timed: str
    least_us: float | None
    origin: str
    sparsity: Sparsity | None = None

    @property
    def share(self) -> float | None:
        """Of the roofline: 1 is as fast as can be."""
        return self.least_us / self.microseconds if self.least_us is not None and self.microseconds else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "grid": list(self.grid), "share": self.share}


@dataclass(frozen=True)
class Profile:
    """The steps of one variant at some sizes. chip: the GPU's name, of what the engine was built for or runs on."""

    at: Mapping[str, int]
    chip: str
    rows: tuple[StepRow, ...]


def profile(engine: bytes, at: Mapping[str, int], measure: bool = False) -> Profile:
    """The rows of an engine. at: sizes of its symbols. measure: time every step on this machine's GPU.

    Without measuring, nothing in the engine is run. Raises InvalidOption for a symbol without a size, EngineMismatch for bytes
    that are no engine, or that do not run here when they are to be measured.
    """
    plan, _ = read(engine)
    env = dict(at)
    if missing := [name for name in symbols_of(plan) if name not in env]:
        raise InvalidOption(f"the engine has a dynamic size {missing[0]!r}; say which, as in --at {missing[0]}=8")
    variant = _nearest(plan, env)
    times = measured(engine, plan, env) if measure else None
    name = torch.cuda.get_device_name() if measure else plan.target.chip or USUAL.get(plan.target.arch, plan.target.arch)
    rows = list(_rows(plan, variant, env, chip_named(name), times))
    return Profile(env, name, tuple(rows if measure else together(rows)))


def symbols_of(plan: Plan) -> list[str]:
    """The dynamic sizes, in the order in which the inputs have them."""
    found = [size for name in plan.inputs for size in plan.values[name].shape if isinstance(size, str)]
    return list(dict.fromkeys(symbol for size in found for symbol in sizes.parse(size).symbols))


def _nearest(plan: Plan, env: Mapping[str, int]) -> Variant:
    from torchsmith.backends.cuda.run import nearest

    return nearest(plan.variants, env)


def _rows(
    plan: Plan, variant: Variant, env: Mapping[str, int], chip: Chip | None, times: Sequence[float] | None
) -> Iterator[StepRow]:
    for number, step in enumerate(variant.steps):
        about = step.about
        written = step.writes if isinstance(step, LaunchStep) else step.outputs
        outputs = [plan.values[name] for name in written]
        moved = sum(bytes_of(plan.values[name], env) for name in touched(step))
        flops = int(sizes.evaluate(about.get("flops", 0), env))
        tuned = about.get("microseconds")
        taken, how = (times[number], "measured") if times is not None else (tuned, "tuned" if tuned is not None else "")
        dtype = outputs[0].dtype if outputs else torch.float32
        if any(name in str(about.get("node", "")) for name in OF_EIGHT_BITS):
            dtype = torch.int8
        elif dtype.itemsize == 1:
            dtype = torch.float16  # a product of halves that is quantized
        yield StepRow(
            number=number,
            op=str(about.get("node", "")),
            tactic=str(about.get("tactic", "")),
            kernel=plan.kernels[step.kernel].symbol if isinstance(step, LaunchStep) else type(step.op).__name__,
            grid=tuple(sizes.evaluate(g, env) for g in step.grid) if isinstance(step, LaunchStep) else (),
            output=", ".join(described(value, env) for value in outputs),
            bytes=moved,
            flops=flops,
            microseconds=None if taken is None else float(taken),
            timed=how,
            least_us=chip.microseconds(flops, moved, dtype) if chip else None,
            origin=str(about.get("origin", "")),
            sparsity=sparsity_of(about),
        )


def sparsity_of(about: Mapping[str, Any]) -> Sparsity | None:
    """What a step's report says of 2:4 weights; None of what has none."""
    given = about.get("two_four")
    if not isinstance(given, Mapping):
        return None
    template = str(about.get("tactic", "")).partition(" ")[0]
    return Sparsity(template in SPARSE, given.get("sparse"), given.get("dense"), str(given.get("against", "")))


def together(rows: Sequence[StepRow]) -> list[StepRow]:
    """A node's tuned time is of all its steps, and stands in the first: so does the least that they could take."""
    found = list(rows)
    head = 0
    for number, row in enumerate(rows):
        if row.tactic:
            head = number
        elif found[head].least_us is not None and row.least_us is not None:
            found[head] = replace(found[head], least_us=(found[head].least_us or 0.0) + row.least_us)
    return found


def touched(step: LaunchStep | CallStep) -> list[str]:
    """The values that a step reads or writes, each once."""
    if isinstance(step, LaunchStep):
        return list(dict.fromkeys([*(a["value"] for a in step.arguments if isinstance(a, dict)), *step.writes]))
    return list(dict.fromkeys([*step.inputs, *step.outputs]))


def bytes_of(value: PlannedValue, env: Mapping[str, int]) -> int:
    """Of its elements; one that stands for many (a stride of 0) counts once."""
    count = 1
    for size, stride in zip(value.shape, value.strides, strict=True):
        count *= sizes.evaluate(size, env) if sizes.evaluate(stride, env) else 1
    return count * value.dtype.itemsize


def described(value: PlannedValue, env: Mapping[str, int]) -> str:
    shape = ", ".join(str(sizes.evaluate(size, env)) for size in value.shape)
    return f"{SHORT_NAMES.get(value.dtype, str(value.dtype))}[{shape}]"


# ---- measuring ------------------------------------------------------------------------------------------------------------


def measured(engine: bytes, plan: Plan, env: Mapping[str, int]) -> list[float]:
    """Microseconds that each step adds to the engine's run, in place: caches and waiting for the step before are part of it.

    The first n steps are captured as a graph and replayed, for every n; a step's time is the difference that it makes. Adjacent
    steps may trade a few tenths of a microsecond; the sum is the run's own time.
    """
    from torchsmith.backends.cuda.run import CudaRunner, nearest

    instance = tried(CudaRunner(engine, _target_here()), env, nearest(plan.variants, env))
    ends = [0.0, *(_replayed(instance, count) for count in range(1, len(instance.variant.steps) + 1))]
    return [max(0.0, after - before) for before, after in itertools.pairwise(ends)]


def tried(runner: CudaRunner, env: Mapping[str, int], variant: Variant) -> Instance:
    """The engine at these sizes after a run on made-up inputs, by which libraries choose their kernels."""
    from torchsmith.backends.cuda.run import Instance

    instance = Instance(runner, env, variant)
    inputs = [instance.memory.new(name).zero_() for name in runner.plan.inputs]
    for tensor in inputs:
        if tensor.is_floating_point():
            tensor.normal_()
    instance.lend(inputs)
    instance.enqueue(torch.cuda.current_stream())
    return instance


def _target_here() -> Any:
    from torchsmith.backends import target_of

    return target_of("cuda")


def _replayed(instance: Instance, count: int) -> float:
    """Microseconds of the first `count` steps as a graph: the median of some replays one after another."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        instance.enqueue(torch.cuda.current_stream(), count)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]  # type: ignore[no-untyped-call]
    for _ in range(2):
        graph.replay()
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    times: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return 1000.0 * statistics.median(times)
