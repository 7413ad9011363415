"""The kernels on a GPU, in many of their configurations: models whose nodes each take some tactic or other.

`tools/sanitize.py` runs this file under compute-sanitizer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.on_gpu.nets import BFLOAT, FLOAT, HALF, ROUNDING, Bert, Cnn, Vit, needs_gpu
from tests.backends.cuda.simulated import graph_of, relative
from torchsmith import backends
from torchsmith.backends.cuda import build, plan
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.cubins import compile_all
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.run import Instance
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.timing_cache import Timing
from torchsmith.backends.cuda.tune import Chosen, Search, tactic_text
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.widen import wide, widened
from torchsmith.target import Target

pytestmark = needs_gpu
CHOICES = 4  # of each model and precision


@pytest.fixture(autouse=True)
def no_recording_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the sanitizer every tensor is an allocation of its own, which cannot be made while a CUDA graph is recorded."""
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        monkeypatch.setattr(Instance, "_record", lambda self, stream: None)


class Shapes(nn.Module):
    """What the three models lack: odd sizes, groups, dilation, concatenation, reductions, pooling of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(12, 18, 3, 1, 1, groups=3)
        self.dilated = nn.Conv2d(18, 7, 3, 1, 2, dilation=2)
        self.wide = nn.Conv2d(7, 12, (5, 3), (2, 1), (2, 1))
        self.depthwise = nn.Conv2d(12, 12, 5, 2, 2, groups=12)
        self.norm, self.linear = nn.GroupNorm(3, 12), nn.Linear(24, 33)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.grouped(x))
        y = torch.cat([self.wide(F.hardswish(self.dilated(y))), F.max_pool2d(x, (3, 3), (2, 1), 1)], 1)
        y = F.avg_pool2d(self.depthwise(y[:, :12]) + self.norm(y[:, ::2]).amax((2, 3), keepdim=True), 3, 1, 1)
        pooled = torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)
        return torch.softmax(self.linear(pooled), -1), y.permute(0, 2, 3, 1).log_softmax(-1)


def model_of(kind: type[nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    if kind is Bert:
        mask = torch.ones(2, 21, dtype=torch.int64)
        mask[1, 9:] = 0
        return kind().eval(), (torch.randint(0, 100, (2, 21)), mask)
    return kind().eval(), (torch.randn(2, 12, 13, 11) if kind is Shapes else torch.randn(2, 3, 32, 32),)


class Drawn:
    """Times by a hash, so that each node takes some tactic; those that do not compile have none."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.impossible: set[tuple[str, str]] = set()

    def __call__(self, signature: str, tactic: Any) -> Timing:
        name = tactic_text(tactic)
        if (signature, name) in self.impossible:
            return Timing(reason="it does not compile")
        if tactic is None:
            return Timing(microseconds=1e9)
        digest = hashlib.sha256(f"{self.seed} {signature} {name}".encode()).digest()
        return Timing(microseconds=1 + digest[0])


def chosen_by(drawn: Drawn, graph: Graph, target: Target) -> tuple[list[Chosen], dict[Any, Any], Packed]:
    """Every node's tactic, all of which compile."""
    arch = int(target.arch.removeprefix("sm_"))
    while True:
        views, packed = place(graph), Packed(graph.constants)
        search = Search(views, packed, 5, recall=drawn)
        chosen = search.settle(graph.nodes, {})
        owners: dict[str, list[tuple[str, str]]] = {}
        kernels = []
        for choice in chosen:
            if choice.tactic is None:
                continue
            problem = search.problem(choice.node, {})
            steps = build.steps_of([choice], dict(views), packed, {}).steps
            for step in steps:
                if isinstance(step, Launch):
                    owners.setdefault(step.kernel.key(), []).append((problem.signature, tactic_text(choice.tactic)))
                    kernels.append(step.kernel)
        failed = [name for kernel, made in compile_all(kernels, arch) if isinstance(made, str) for name in owners[kernel.key()]]
        if not failed:
            return chosen, views, packed
        drawn.impossible.update(failed)


@pytest.mark.parametrize("seed", range(CHOICES))
@pytest.mark.parametrize("dtype", [HALF, FLOAT, BFLOAT], ids=["f16", "f32", "bf16"])
@pytest.mark.parametrize("kind", [Cnn, Vit, Bert, Shapes], ids=["cnn", "vit", "bert", "shapes"])
def test_any_choice_of_tactics_is_right(kind: type[nn.Module], dtype: torch.dtype, seed: int) -> None:
    if dtype is BFLOAT and seed:
        pytest.skip("bfloat16 differs from float16 in types alone")
    model, given = model_of(kind)
    check_any_choice(graph_of(model, given, dtype), given, seed, 1.1, ROUNDING[dtype])


def check_any_choice(
    graph: Graph, given: Sequence[Tensor], seed: int, factor: float, floor: float, kinds: Sequence[str] = ()
) -> None:
    """Assert that an engine of tactics drawn by the seed errs by at most factor times PyTorch's own error, and the floor.

    kinds: what stands in the names of ops that there are to be.
    """
    target = backends.target_of("cuda")
    chosen, views, packed = chosen_by(Drawn(seed), fuse(graph), target)
    for kind in kinds:
        assert any(kind in str(choice.node.op) for choice in chosen), kind
    emitted = build.steps_of(chosen, views, packed, {})
    cubins = build.compile_steps(emitted.steps, int(target.arch.removeprefix("sm_")))
    engine = plan.write(target, graph.inputs, graph.outputs, [emitted], views, packed.tensors, cubins, build.versions())
    run = BACKEND.load(engine, target)
    eager, wanted = references(graph, given)
    limit, on_gpu = factor * relative(eager, wanted) + floor, [t.cuda() for t in given]
    for results in (run(on_gpu), run(on_gpu), run(on_gpu)):
        found = relative([t.cpu() for t in results], wanted)
        assert found <= limit, (found, limit, [str(c.tactic) for c in chosen])


def references(graph: Graph, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """In the graph's own precision, and in float64."""
    return interpret(graph, list(given)), interpret(widened(graph), [t.to(wide(t.dtype)) for t in given])
