"""Products through tensor descriptors on a GPU: right in every configuration, and alike in each replay, back to back too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.on_gpu.nets import BFLOAT, HALF, ROUNDING, needs_gpu
from tests.backends.cuda.simulated import graph_of, relative
from torchsmith import backends
from torchsmith.backends.cuda import build, plan, tune
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.tactics import Tactic, kind_of
from torchsmith.backends.cuda.tactics.gemm_tma import TEMPLATE, GemmTmaConfig, gemm_tma_configs
from torchsmith.backends.cuda.tune import Chosen, Search
from torchsmith.config import BuildConfig
from torchsmith.ir.interpret import interpret
from torchsmith.ir.widen import widened

pytestmark = [
    needs_gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="tensor descriptors take sm_90"
    ),
]
CONFIGS = [
    *gemm_tma_configs(6304, 3072, 768, True),
    GemmTmaConfig(128, 128, 64, 8, 3, parts=2),
    GemmTmaConfig(128, 128, 64, 8, 3, programs=7, parts=1, flatten=False),
    GemmTmaConfig(64, 64, 64, 4, 4, programs=3, parts=1, store=True),
]


class Mlp(nn.Module):
    """Products that follow each other, whose rows, columns and sums no tile divides."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.leave = (nn.Linear(*s) for s in ((200, 328), (328, 776), (776, 328), (328, 72)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y: Tensor = self.leave(self.down(F.gelu(self.up(x))) + x)
        return y


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=["f16", "bf16"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_products_are_right_and_alike_in_each_replay(config: GemmTmaConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = torch.randn(777, 200)
    graph, target = graph_of(Mlp().eval(), [given], dtype), backends.target_of("cuda")
    fused = fuse(graph)
    views, packed = place(fused), Packed(fused.constants)
    search = Search(views, packed, 1, arch=int(target.arch.removeprefix("sm_")))
    chosen = [_large(c, search, config) for c in search.settle(fused.nodes, {})]
    assert sum(c.tactic is not None and c.tactic.template == "gemm_tma" for c in chosen) == 4
    emitted = build.steps_of(chosen, views, packed, {})
    cubins = build.compile_steps(emitted.steps, search.arch)
    engine = plan.write(target, graph.inputs, graph.outputs, [emitted], views, packed.tensors, cubins, build.versions())
    run = BACKEND.load(engine, target)
    eager = interpret(graph, [given])
    wanted = interpret(widened(graph), [given.double()])
    limit = 1.1 * relative(eager, wanted) + ROUNDING[dtype]
    first = run([given.cuda()])
    assert relative([t.cpu() for t in first], wanted) <= limit
    for _ in range(20):
        again = [run([given.cuda()]) for _ in range(10)]
        assert all(torch.equal(a, b) for results in again for a, b in zip(results, first, strict=True))


def _large(choice: Chosen, search: Search, config: GemmTmaConfig) -> Chosen:
    """The node through descriptors, where it is a product."""
    return Chosen(choice.node, Tactic("gemm_tma", config)) if kind_of(search.emission(choice.node)) in TEMPLATE.kinds else choice


def test_the_tuner_times_large_products_through_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: dict[str, Any] = {}

    class Watched(tune.Tuner):
        def _judge(self, problem: Any, candidate: Any) -> None:
            super()._judge(problem, candidate)
            timed.update(problem.found)

    monkeypatch.setattr(tune, "Tuner", Watched)
    graph = graph_of(nn.Sequential(nn.Linear(768, 3072), nn.GELU()), [torch.zeros(4100, 768)])
    BACKEND.build(graph, backends.target_of("cuda"), BuildConfig(timing_cache=""))
    found = {name: timing for name, timing in timed.items() if "gemm_tma" in name}
    assert found and all(timing.reason is None and timing.microseconds for timing in found.values()), found
