"""Which tactic each node takes: the fastest by timing on the device, by what was measured earlier, or by best guess.

Nodes with the same signature are one problem. A fused node that holds fused nodes may also run as these, whichever takes less.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.candidate import Candidate
from torchsmith.backends.cuda.cubins import Broken, Cubin, compile_all
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import View, is_view, place_node
from torchsmith.backends.cuda.program import is_pointwise
from torchsmith.backends.cuda.signature import digest, signature
from torchsmith.backends.cuda.steps import Kernel
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.backends.cuda.tactics.sparse import has_two_four
from torchsmith.backends.cuda.timing import OutOfMemory, Timer, device_timer
from torchsmith.backends.cuda.timing_cache import Timing, TimingCache, open_cache, tactic_text
from torchsmith.config import BuildConfig
from torchsmith.debug.progress import Progress, progress_of
from torchsmith.errors import BuildError, Unsupported
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.target import Target

# Weights of more bytes than this do not stay in the L2 cache from one call to the next (half of an A100's or H100's).
COLD_BYTES = 25 << 20
# A size without a limit is tuned for up to so many times its least.
UNLIMITED = 8


@dataclass(frozen=True)
class TwoFour:
    """Of a node with 2:4 weights. sparse, dense: microseconds of the fastest tactic of each kind, None where none was timed.

    against: why there is no sparse one; empty where there is.
    """

    sparse: float | None
    dense: float | None
    against: str


@dataclass(frozen=True)
class Chosen:
    """A node of the final graph and how it runs. tactic: None for a view, and for an op that runs as its reference.

    two_four: None for what has no 2:4 weights.
    """

    node: Node
    tactic: Tactic | None
    microseconds: float | None = None
    two_four: TwoFour | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen for the sizes `at`."""

    at: Mapping[str, int]
    chosen: Sequence[Chosen]


Choose = Callable[[Graph, "dict[Value, View]", Packed, Target, BuildConfig], "list[Choice]"]


def guess(graph: Graph, views: dict[Value, View], packed: Packed, target: Target, config: BuildConfig) -> list[Choice]:
    """One choice for every size: best guesses for those in the middle. Nothing is compiled.

    Adds the views of what is inside nodes that are taken apart.
    """
    return [Choice({}, Search(views, packed, 1).settle(graph.nodes, points(graph)[0]))]


def choose(graph: Graph, views: dict[Value, View], packed: Packed, target: Target, config: BuildConfig) -> list[Choice]:
    """Timed on this GPU where it is the target, else by the timing cache, else best guesses that compile; for each of `points`.

    Adds the views of what is inside nodes that are taken apart.
    """
    arch, workers = int(target.arch.removeprefix("sm_")), config.compile_workers
    sizes = points(graph) if config.tune else points(graph)[:1]
    cold = sum(t.nbytes for t in graph.constants.values()) > COLD_BYTES
    timer = device_timer(target) if config.tune else None
    cache = open_cache(target, config.timing_cache_path if config.tune else "")
    search = Search(views, packed, config.tactics_per_node, cold, cache.get if timer else cache.nearest)
    with progress_of("tuning" if timer else "compiling kernels") as progress:
        judge = Guesser(search, arch, workers, progress) if timer is None else Tuner(search, arch, workers, timer, cache, progress)
        while todo := judge.open_problems(search.reached_by(graph.nodes, sizes)):
            judge(todo)
    return distinct([Choice(at, search.settle(graph.nodes, at)) for at in sizes])


def points(graph: Graph) -> list[dict[str, int]]:
    """The sizes to choose for: every symbol at its least, in the middle, and at its most. One, empty, where nothing is dynamic."""
    lows, middles, highs = dict[str, int](), dict[str, int](), dict[str, int]()
    for name, (low, high) in graph.ranges.items():
        low = max(1, low)
        high = low * UNLIMITED if high is None else max(low, high)
        lows[name], middles[name], highs[name] = low, round((low * high) ** 0.5), high
    found: list[dict[str, int]] = []
    for at in (middles, lows, highs):  # what is needed once takes its problem from the middle
        if at not in found:
            found.append(at)
    return found


def distinct(choices: Sequence[Choice]) -> list[Choice]:
    """Without the choices that are another one's for other sizes: one alone is for all sizes."""
    taken = [[(c.node, c.tactic) for c in choice.chosen] for choice in choices]
    kept = [choice for i, choice in enumerate(choices) if taken[i] not in taken[:i]]
    return [replace(kept[0], at={})] if len(kept) == 1 else kept


# ---- problems and what is known of them -------------------------------------------------------------


@dataclass(eq=False)
class Problem:
    """Nodes of one signature, by one of them. found: what is known of each tactic, by `tactic_text`."""

    signature: str
    node: Node
    at: Mapping[str, int]
    tactics: tuple[Tactic | None, ...]
    found: dict[str, Timing] = field(default_factory=dict)
    against_sparse: str | None = None  # of 2:4 weights: why there is no sparse tactic, empty where there is

    def best(self) -> tuple[Tactic | None, Timing] | None:
        """The fastest of those that were timed, else the first that may run. None where all are known not to."""
        known = [(t, self.found.get(tactic_text(t), Timing())) for t in self.tactics]
        usable = [(t, timing) for t, timing in known if timing.reason is None]
        timed = [(t, timing) for t, timing in usable if timing.microseconds is not None]
        if timed:
            return min(timed, key=lambda pair: pair[1].microseconds or 0.0)
        return usable[0] if usable else None

    def two_four(self) -> TwoFour | None:
        if self.against_sparse is None:
            return None
        times: dict[bool, float] = {}
        for tactic in self.tactics:
            known = self.found.get(tactic_text(tactic), Timing()).microseconds
            if known is not None:
                kind = is_sparse(tactic)
                times[kind] = min(known, times.get(kind, known))
        return TwoFour(times.get(True), times.get(False), self.against_sparse)

    def unknown(self) -> list[Tactic | None]:
        return [t for t in self.tactics if tactic_text(t) not in self.found]


class Search:
    """The problems of a graph, and the choice that follows from what is known of them.

    limit: tactics of each template. recall: what earlier builds know of (signature, tactic).
    """

    def __init__(
        self,
        views: dict[Value, View],
        packed: Packed,
        limit: int,
        cold: bool = False,
        recall: Callable[[str, Tactic | None], Timing | None] | None = None,
    ) -> None:
        self.views, self.packed, self.limit, self.cold = views, packed, limit, cold
        self._recall = recall
        self._problems: dict[str, Problem] = {}
        self._of: dict[tuple[Node, tuple[tuple[str, int], ...]], Problem] = {}
        self._parts: dict[Node, Sequence[Node]] = {}
        self._reached: dict[Problem, None] = {}

    def reached_by(self, nodes: Sequence[Node], sizes: Sequence[Mapping[str, int]]) -> list[Problem]:
        """The problems that the choice depends on, by what is known now."""
        self._reached.clear()
        for at in sizes:
            self.settle(nodes, at)
        return list(self._reached)

    def settle(self, nodes: Sequence[Node], at: Mapping[str, int]) -> list[Chosen]:
        """Every node with the best that is known for it; fused nodes are taken apart where that is better, or all there is."""
        return [chosen for node in nodes for chosen in self._settled(node, at)]

    def _settled(self, node: Node, at: Mapping[str, int]) -> list[Chosen]:
        if is_view(node, self.views):
            return [Chosen(node, None, 0.0)]
        problem = self.problem(node, at)
        best = problem.best()
        own = None if best is None else Chosen(node, best[0], best[1].microseconds, problem.two_four())
        if not isinstance(node.op, Fused):
            return [own or Chosen(node, None)]
        if own is not None and not any(isinstance(n.op, Fused) for n in node.op.body.nodes):
            return [own]
        apart = self.settle(self.parts(node, node.op), at)
        if own is None:
            return apart
        cost, other = own.microseconds, total(apart)
        return apart if cost is not None and other is not None and other < cost else [own]

    def problem(self, node: Node, at: Mapping[str, int]) -> Problem:
        key = (node, tuple(sorted(at.items())))
        if key not in self._of:
            e = self.emission(node, at)
            text = signature(node, self.views, e.constant, at, self.packed.tf32) + ("\nweights from memory" if self.cold else "")
            name = digest(text)
            if name not in self._problems:
                self._problems[name] = self._new(name, node, at)
            self._of[key] = self._problems[name]
        problem = self._of[key]
        self._reached[problem] = None
        return problem

    def _new(self, name: str, node: Node, at: Mapping[str, int]) -> Problem:
        e = self.emission(node, at)
        offered, refusals = tactics.tactics_of(e, max(1, self.limit))
        found: list[Tactic | None] = list(offered)
        if not isinstance(node.op, Fused) and not is_pointwise(node):
            found.append(None)
        problem = Problem(name, node, at, tuple(found))
        if has_two_four(e):
            refused = [r.partition(": ")[2] for r in refusals if r.partition(":")[0] in tactics.SPARSE]
            problem.against_sparse = "" if any(map(is_sparse, found)) else "; ".join(refused) or "there is no sparse tactic for it"
        for tactic in found:
            known = self._recall(name, tactic) if self._recall else None
            if known is not None:
                problem.found[tactic_text(tactic)] = known
        return problem

    def parts(self, node: Node, op: Fused) -> Sequence[Node]:
        """The nodes of a fused one's body, with views for what is inside."""
        if node not in self._parts:
            outer = {v: self.views[v] for v in node.outputs}
            for inner in op.body.nodes:
                place_node(inner, self.views)
                self.views.update({v: outer[v] for v in inner.outputs if v in outer})
            self._parts[node] = op.body.nodes
        return self._parts[node]

    def emission(self, node: Node, at: Mapping[str, int] | None = None) -> Emission:
        return Emission(node, self.views, self.packed, at=at)

    def candidate(self, problem: Problem, tactic: Tactic | None) -> Candidate:
        """Raises Unsupported where the template refuses this configuration."""
        e = self.emission(problem.node)
        if tactic is None:
            e.call(problem.node.op, problem.node.inputs, problem.node.outputs)
        else:
            tactics.template(tactic.template).emit(e, tactic.config)
        touched = {v for s in e.steps for v in s.touched} | {*problem.node.inputs, *problem.node.outputs}
        views = {v: e.views[v] for value in touched for v in (value, e.views[value].root)}
        return Candidate(problem.node, tactic, e.steps, views, self.packed.tensors, problem.at, self.cold, self.packed.tf32)


def total(chosen: Sequence[Chosen]) -> float | None:
    """Microseconds of all of them, where all are known."""
    times = [c.microseconds for c in chosen]
    return sum(t for t in times if t is not None) if None not in times else None


def is_sparse(tactic: Tactic | None) -> bool:
    return tactic is not None and tactic.template in tactics.SPARSE


# ---- finding out -------------------------------------------------------------


class Judge(Protocol):
    """Adds to what is known of problems."""

    def open_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those of which too little is known."""

    def __call__(self, problems: Sequence[Problem]) -> None: ...


class Guesser:
    """Without a GPU: whether each problem's best one compiles. Raises BuildError for a kernel that is wrong."""

    def __init__(self, search: Search, arch: int, workers: int, progress: Progress) -> None:
        self.search, self.arch, self.workers, self.progress = search, arch, workers, progress
        self.compiled: set[tuple[Problem, str]] = set()

    def open_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        bests = [(p, p.best()) for p in problems]
        return [p for p, best in bests if best is not None and (p, tactic_text(best[0])) not in self.compiled]

    def __call__(self, problems: Sequence[Problem]) -> None:
        waiting: dict[str, list[tuple[Problem, str]]] = {}
        kernels: dict[str, Kernel] = {}
        for problem in problems:
            best = problem.best()
            assert best is not None
            name = tactic_text(best[0])
            self.compiled.add((problem, name))
            for launch in self.search.candidate(problem, best[0]).launches:
                key = launch.kernel.key()
                kernels[key] = launch.kernel
                waiting.setdefault(key, []).append((problem, name))
        self.progress.expect(len(kernels))
        for kernel, made in compile_all(kernels.values(), self.arch, self.workers):
            self.progress.advance()
            if isinstance(made, Broken):
                raise BuildError(made)
            if isinstance(made, str):
                for problem, name in waiting[kernel.key()]:
                    problem.found[name] = Timing(reason=made)


class Tuner:
    """Times every tactic of problems that is not known yet, as soon as all the kernels of a problem are compiled."""

    def __init__(self, search: Search, arch: int, workers: int, timer: Timer, cache: TimingCache, progress: Progress) -> None:
        self.search, self.arch, self.workers = search, arch, workers
        self.timer, self.cache, self.progress = timer, cache, progress
        self.cubins: dict[str, Cubin | str] = {}

    def open_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        return [p for p in problems if p.unknown()]

    def __call__(self, problems: Sequence[Problem]) -> None:
        candidates = {problem: self._candidates(problem) for problem in problems}
        kernels = [s.kernel for each in candidates.values() for c in each for s in c.launches]
        missing = {k.key() for k in kernels if k.key() not in self.cubins}
        waiting = {p: {s.kernel.key() for c in each for s in c.launches} & missing for p, each in candidates.items()}
        self.progress.expect(len(missing) + sum(map(len, candidates.values())))
        self._ready(waiting, candidates)
        for kernel, made in compile_all([k for k in kernels if k.key() in missing], self.arch, self.workers):
            self.cubins[kernel.key()] = made
            self.progress.advance()
            for left in waiting.values():
                left.discard(kernel.key())
            self._ready(waiting, candidates)

    def _ready(self, waiting: dict[Problem, set[str]], candidates: Mapping[Problem, Sequence[Candidate]]) -> None:
        for problem in [p for p, left in waiting.items() if not left]:
            del waiting[problem]
            for candidate in candidates[problem]:
                self._judge(problem, candidate)
                self.progress.advance()

    def _candidates(self, problem: Problem) -> list[Candidate]:
        made = []
        for tactic in problem.unknown():
            try:
                made.append(self.search.candidate(problem, tactic))
            except Unsupported as refusal:
                problem.found[tactic_text(tactic)] = Timing(reason=str(refusal))
        return made

    def _judge(self, problem: Problem, candidate: Candidate) -> None:
        timing, is_lasting = self._timing(problem, candidate)
        problem.found[tactic_text(candidate.tactic)] = timing
        if is_lasting:
            self.cache.put(problem.signature, candidate.tactic, timing, str(problem.node.op))

    def _timing(self, problem: Problem, candidate: Candidate) -> tuple[Timing, bool]:
        """What is found out, and whether it will be so in the next build."""
        own = {s.kernel.key(): self.cubins[s.kernel.key()] for s in candidate.launches}
        for refusal in own.values():
            if isinstance(refusal, Broken):
                self._warn(problem, candidate, refusal)
                return Timing(reason=refusal), False
            if isinstance(refusal, str):
                return Timing(reason=refusal), True
        cubins: dict[str, Any] = own
        try:
            accuracy = None if candidate.tactic is None else self.timer.check(candidate, cubins)
            if isinstance(accuracy, OutOfMemory):
                return Timing(), False
            if isinstance(accuracy, str):
                self._warn(problem, candidate, accuracy)
                return Timing(reason=accuracy), True
            error = None if accuracy is None else accuracy.error
            if accuracy is not None and accuracy.fault:
                self._warn(problem, candidate, f"its results are wrong: {accuracy.fault}")
                return Timing(None, error, f"wrong: {accuracy.fault}"), True
            time = self.timer.time(candidate, cubins)
        except BuildError as lost:
            self.cache.put(problem.signature, candidate.tactic, Timing(reason=str(lost)), str(problem.node.op))
            raise
        if isinstance(time, OutOfMemory):
            return Timing(), False
        return (Timing(None, error, time), True) if isinstance(time, str) else (Timing(time, error), True)

    def _warn(self, problem: Problem, candidate: Candidate, why: str) -> None:
        where = f", for {problem.node.origin}" if problem.node.origin else ""
        warnings.warn(
            f"torchsmith leaves out a tactic that does not work, which is a bug of ours: {candidate.tactic} of "
            f"{problem.node.op}{where}: {why}",
            stacklevel=2,
        )
