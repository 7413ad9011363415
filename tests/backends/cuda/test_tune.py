from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.cuda.problems import FakeCompiler, FakeTimer, layers, placed
from torchsmith import debug
from torchsmith.backends.cuda import build, tactics, tune
from torchsmith.backends.cuda.accuracy import Accuracy
from torchsmith.backends.cuda.candidate import Candidate
from torchsmith.backends.cuda.cubins import Broken
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused, wrap
from torchsmith.backends.cuda.timing import OutOfMemory
from torchsmith.backends.cuda.tune import Choice, Chosen, points
from torchsmith.config import BuildConfig
from torchsmith.debug.progress import Progress
from torchsmith.errors import BuildError
from torchsmith.ir.graph import Graph
from torchsmith.target import Target

HERE = Target("cuda", "sm_90", (), "a GPU")
NONE = BuildConfig(timing_cache_path="")


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    timer = FakeTimer()
    monkeypatch.setattr(tune, "device_timer", lambda target: timer)
    return timer


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCompiler]:
    compiler = FakeCompiler()
    monkeypatch.setattr(tune, "compile_all", compiler)
    yield compiler


def choose(graph: Graph, config: BuildConfig = NONE) -> list[Choice]:
    graph = fuse(graph)
    views, packed = placed(graph)
    return tune.choose(graph, views, packed, HERE, config)


def candidates(graph: Graph, limit: int = 8) -> list[tactics.Tactic]:
    """Of the first node, those that are offered for every one of `points`."""
    graph = fuse(graph)
    search = tune.Search(*placed(graph), limit)
    first, *others = (tactics.tactics_of(search.emission(graph.nodes[0], at), limit)[0] for at in points(graph))
    return [tactic for tactic in first if all(tactic in other for other in others)]


def test_the_fastest_is_chosen_and_nodes_that_are_alike_are_timed_once(timer: FakeTimer) -> None:
    found = candidates(layers())
    timer.cost = lambda candidate: 1.0 if candidate.tactic == found[-1] else 2.0
    (choice,) = choose(layers(3))
    assert [c.tactic for c in choice.chosen] == [found[-1]] * 3
    assert [c.microseconds for c in choice.chosen] == [1.0] * 3 and choice.at == {}
    assert len(timer.timed) == len(found) > 2


def test_kernels_that_candidates_share_are_compiled_once(timer: FakeTimer, compiler: FakeCompiler) -> None:
    choose(layers(2))
    keys = [k.key() for k in compiler.asked]
    assert len(keys) == len(set(keys))


def test_a_second_build_times_nothing(timer: FakeTimer, compiler: FakeCompiler, tmp_path: Path) -> None:
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    timer.cost = lambda candidate: float(hash(str(candidate.tactic)) % 1000)
    (first,) = choose(layers(), config)
    times, kernels = len(timer.timed), len(compiler.asked)
    (second,) = choose(layers(), config)
    assert [c.tactic for c in first.chosen] == [c.tactic for c in second.chosen]
    assert (len(timer.timed), len(compiler.asked)) == (times, kernels)


def test_the_number_of_tactics_is_an_option(timer: FakeTimer) -> None:
    choose(layers(), BuildConfig(timing_cache_path="", tactics_per_node=2))
    per_template: dict[str, int] = {}
    for candidate in timer.timed:
        assert candidate.tactic is not None
        per_template[candidate.tactic.template] = per_template.get(candidate.tactic.template, 0) + 1
    assert max(per_template.values()) == 2


def test_what_does_not_compile_is_left_out(timer: FakeTimer, compiler: FakeCompiler, tmp_path: Path) -> None:
    found = candidates(layers())
    refused = dict.fromkeys(itertools.islice((k.key() for k in kernels_of(found[:1])), 1))
    compiler.answer = lambda kernel: "too much shared memory" if kernel.key() in refused else FakeCompiler().answer(kernel)
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    for _ in range(2):
        (choice,) = choose(layers(), config)
        assert choice.chosen[0].tactic == found[1]
    assert all(c.tactic != found[0] for c in timer.timed)
    assert "too much shared memory" in (tmp_path / "t").read_text()


def kernels_of(found: list[tactics.Tactic]) -> Iterator[Any]:
    graph = fuse(layers())
    search = tune.Search(*placed(graph), 8)
    for tactic in found:
        for launch in search.candidate(search.problem(graph.nodes[0], {}), tactic).launches:
            yield launch.kernel


def test_wrong_results_are_never_chosen_and_said_aloud(timer: FakeTimer, tmp_path: Path) -> None:
    found = candidates(layers())
    timer.accuracy = lambda c: Accuracy(0.5, "off by 0.5" if c.tactic == found[0] else None)
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    with pytest.warns(UserWarning, match="bug of ours.*off by 0.5"):
        (choice,) = choose(layers(), config)
    assert choice.chosen[0].tactic == found[1]
    (again,) = choose(layers(), config)
    assert again.chosen[0].tactic == found[1] and found[0] not in [c.tactic for c in timer.timed]


def test_a_kernel_that_is_wrong_is_said_aloud_and_tried_again_in_the_next_build(
    timer: FakeTimer, compiler: FakeCompiler, tmp_path: Path
) -> None:
    (broken, *_) = kernels_of(candidates(layers())[:1])
    compiler.answer = lambda k: Broken("no such name") if k.key() == broken.key() else FakeCompiler().answer(k)
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="no such name"):
            choose(layers(), config)


def test_where_nothing_works_the_op_runs_in_pytorch(timer: FakeTimer) -> None:
    timer.cost = lambda candidate: 7.0 if candidate.tactic is None else "the driver refuses"
    (choice,) = choose(layers(1))
    assert [(type(c.node.op).__name__, c.tactic) for c in choice.chosen] == [("Linear", None), ("Unary", None)]


def test_too_little_memory_for_timing_is_not_remembered(timer: FakeTimer, tmp_path: Path) -> None:
    timer.cost = lambda candidate: OutOfMemory("there is no memory to time it")
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    (choice,) = choose(layers(), config)
    assert choice.chosen[0].tactic == candidates(layers())[0] and choice.chosen[0].microseconds is None
    assert not (tmp_path / "t").exists()


def test_what_broke_the_gpu_is_remembered(timer: FakeTimer, tmp_path: Path) -> None:
    def lost(candidate: Candidate) -> float:
        raise BuildError("an illegal access broke the GPU's context")

    timer.cost = lost
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    with pytest.raises(BuildError, match="illegal access"):
        choose(layers(), config)
    timer.cost = lambda candidate: 1.0
    (choice,) = choose(layers(), config)
    assert choice.chosen[0].tactic == candidates(layers())[1]


# ---- fused nodes that hold fused nodes -------------------------------------------------------------


def nested(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Two layers as one node of the kind "pair", which a template of its own takes."""
    graph = fuse(layers())
    first, second = graph.nodes

    class Pair:
        name, kinds = "pair", frozenset({"pair"})

        def configs(self, e: Any) -> list[Any]:
            return [tactics.template("gemm").configs(tune.Search(*placed(graph), 8).emission(first))[0]]

        def emit(self, e: Any, config: Any) -> None:
            e.call(e.node.op, e.node.inputs, e.node.outputs)

    original = tactics.template
    monkeypatch.setattr(tactics, "ORDER", (*tactics.ORDER, "pair"))
    monkeypatch.setattr(tactics, "template", lambda name: Pair() if name == "pair" else original(name))
    monkeypatch.setattr("torchsmith.backends.cuda.timing_cache._made_by", lambda template: template)
    return wrap(graph, [("pair", [first, second])], nested=True)


@pytest.mark.parametrize(("whole", "kinds"), [(1.9, ["pair"]), (2.1, ["gemm", "gemm"])])
def test_fusing_deeper_or_not_is_a_matter_of_time(
    timer: FakeTimer, monkeypatch: pytest.MonkeyPatch, whole: float, kinds: list[str]
) -> None:
    graph = nested(monkeypatch)
    views, packed = placed(graph)
    timer.cost = lambda c: whole if c.tactic is not None and c.tactic.template == "pair" else 1.0
    (choice,) = tune.choose(graph, views, packed, HERE, NONE)
    assert [getattr(c.node.op, "kind", "") for c in choice.chosen] == kinds
    assert tune.total(choice.chosen) == min(whole, 2.0)


def test_without_times_the_deeper_fusion_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nested(monkeypatch)
    views, packed = placed(graph)
    (choice,) = tune.guess(graph, views, packed, HERE, NONE)
    assert isinstance(choice.chosen[0].node.op, Fused) and choice.chosen[0].node.op.kind == "pair"


# ---- no GPU -------------------------------------------------------------


def test_without_a_gpu_the_best_guess_that_compiles_is_taken(compiler: FakeCompiler) -> None:
    found = candidates(layers())
    refused = {k.key() for k in kernels_of(found[:2])}
    compiler.answer = lambda kernel: "too much" if kernel.key() in refused else FakeCompiler().answer(kernel)
    (choice,) = choose(layers())
    assert choice.chosen[0].tactic == found[2]


def test_without_a_gpu_the_cache_chooses(timer: FakeTimer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = candidates(layers())
    timer.cost = lambda candidate: 1.0 if candidate.tactic == found[1] else 2.0
    config = BuildConfig(timing_cache_path=str(tmp_path / "t"))
    choose(layers(), config)
    monkeypatch.setattr(tune, "device_timer", lambda target: None)
    graph = fuse(layers())
    views, packed = placed(graph)
    (choice,) = tune.choose(graph, views, packed, Target("cuda", "sm_90"), config)
    assert [c.tactic for c in choice.chosen] == [found[1]] * 2
    (guessed,) = tune.choose(
        graph, views, packed, Target("cuda", "sm_90"), BuildConfig(tune=False, timing_cache_path=str(tmp_path / "t"))
    )
    assert guessed.chosen[0].tactic == found[0], "an untuned build does not look"


def test_a_kernel_that_is_wrong_ends_a_build_of_guesses(compiler: FakeCompiler) -> None:
    compiler.answer = lambda kernel: Broken("no such name")
    with pytest.raises(BuildError, match="no such name"):
        choose(layers())


# ---- dynamic sizes -------------------------------------------------------------


@pytest.mark.parametrize(("limits", "sizes"), [((2, 32), [8, 2, 32]), ((1, None), [3, 1, 8]), ((4, 4), [4]), ((1, 2), [1, 2])])
def test_dynamic_sizes_are_tuned_at_three_points(limits: tuple[int, int | None], sizes: list[int]) -> None:
    assert points(Graph((), (), (), {}, {"s0": limits})) == [{"s0": n} for n in sizes]
    assert points(Graph((), (), ())) == [{}]


def test_variants_that_choose_alike_are_one(timer: FakeTimer) -> None:
    found = candidates(layers(rows="s0"))
    timer.cost = lambda candidate: 1.0 if candidate.tactic == found[0] else 2.0
    (choice,) = choose(layers(rows="s0"))
    assert choice.at == {} and sorted({c.at["s0"] for c in timer.timed}) == [2, 8, 32]
    timer.cost = lambda candidate: 1.0 if candidate.tactic == found[int(candidate.at["s0"] > 8)] else 2.0
    small, large = choose(layers(rows="s0"))
    assert (small.at, large.at) == ({"s0": 8}, {"s0": 32})
    assert (small.chosen[0].tactic, large.chosen[0].tactic) == (found[0], found[1])


def test_variants_share_values_and_keep_their_temporaries_apart(timer: FakeTimer) -> None:
    graph = layers(1, rows="s0")
    found = candidates(graph)

    def both(graph: Graph, views: Any, packed: Any, target: Target, config: BuildConfig) -> list[Choice]:
        return [Choice({"s0": n}, [Chosen(node, found[0]) for node in graph.nodes]) for n in (2, 32)]

    emitted, _, _ = build.emit(graph, HERE, NONE, both)
    assert [v.at for v in emitted] == [{"s0": 2}, {"s0": 32}]
    names = [{v.name: v for s in e.steps for v in s.touched} for e in emitted]
    assert all(names[0][n] is names[1][n] for n in names[0].keys() & names[1].keys())


# ---- progress -------------------------------------------------------------


def test_progress_tells_how_much_time_is_left() -> None:
    shown: list[tuple[str, float]] = []
    now = itertools.count(0.0, 1.0)
    progress = Progress("tuning", lambda text, share: shown.append((text, share)), lambda: next(now))
    progress.expect(4)
    progress.advance()
    progress.advance()
    assert shown[0][0].startswith("tuning, 1 of 4, ") and shown[1][1] == 0.5


def test_whoever_listens_hears_of_it(timer: FakeTimer) -> None:
    heard: list[str] = []
    with debug.listening(heard.append):
        choose(layers())
    assert heard and heard[-1].startswith("tuning, ")


def test_no_gpu_gives_no_timer() -> None:
    if not torch.cuda.is_available():
        from torchsmith.backends.cuda.timing import device_timer

        assert device_timer(HERE) is None


def test_an_untuned_build_guesses_once_for_the_middle() -> None:
    graph = fuse(layers(rows="s0"))
    search = tune.Search(*placed(graph), 1)
    (choice,) = choose(layers(rows="s0"), BuildConfig(tune=False, timing_cache_path=""))
    assert choice.at == {}
    assert choice.chosen[0].tactic == search.problem(graph.nodes[0], {"s0": 8}).tactics[0]


def test_templates_guess_for_the_sizes_that_are_tuned_for() -> None:
    graph = fuse(layers(rows="s0"))
    (rows, _) = graph.inputs[0].type.shape
    search = tune.Search(*placed(graph), 8)
    assert search.emission(graph.nodes[0], {"s0": 6}).likely(rows * 2, 99) == 12
    assert search.emission(graph.nodes[0]).likely(rows, 99) == 99 and search.emission(graph.nodes[0]).likely(7, 99) == 7
