"""The public line, as users write it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.openvino.backend import OpenVinoBackend
from torchsmith.errors import BackendUnavailable, FullCompilationRequired, InvalidInput, InvalidOption


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.norm(self.conv(x)))
        return {"features": features, "logits": self.head(features.mean((2, 3)))}


@torch.library.custom_op("torchsmith_tests::wobble", mutates_args=())
def wobble(x: Tensor) -> Tensor:
    """A made-up op that no engine knows."""
    return x * torch.tanh(x)


@wobble.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Wobbly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.after(wobble(torch.relu(self.before(x)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
    net.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net


def close(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert given.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(given[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_one_line(net: Net) -> None:
    x = torch.randn(1, 3, 9, 9)
    fast = torchsmith.compile(net, inputs=[torchsmith.Input((1, 3, 9, 9))], enabled_precisions={torch.float32})
    with torch.no_grad():
        close(fast(x), net(x))
    assert torchsmith.explain(fast).refusals == []


@pytest.mark.parametrize("backend", ["openvino", "reference"])
def test_every_backend_gives_the_same(net: Net, backend: str) -> None:
    x = torch.randn(2, 3, 9, 9)
    fast = torchsmith.compile(net, inputs=[x], backend=backend)
    with torch.no_grad():
        close(fast(x), net(x))
    assert torchsmith.explain(fast).report["backend"] == backend


def test_the_model_is_not_changed(net: Net) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x = torch.randn(1, 3, 9, 9)
    torchsmith.compile(net, inputs=[x])(x)
    assert not net.training and all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_torch_tensorrt_callers_may_name_the_ir_and_arg_inputs(net: Net) -> None:
    x = torch.randn(1, 3, 9, 9)
    fast = torchsmith.compile(net, ir="dynamo", arg_inputs=[x], enabled_precisions={torchsmith.dtype.f32})
    with torch.no_grad():
        close(fast(x), net(x))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"enabled_precision": {torch.half}}, InvalidOption, "no option 'enabled_precision'; did you mean 'enabled_precisions'"),
        ({"enabled_precisions": {torch.int8}}, InvalidOption, "pass calibrator= with typical inputs"),
        ({"min_block_size": -1}, InvalidOption, "whole number that is not negative"),
        ({"backend": "tensorflow"}, InvalidOption, "torchsmith has openvino, reference"),
        ({"ir": "onnx"}, InvalidOption, "ir='onnx'"),
        ({"device": "cuda"}, BackendUnavailable, "finds no GPU"),
        ({"performance_hint": "fast"}, InvalidOption, "latency, throughput"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    net: Net, options: dict[str, object], error: type[Exception], sentence: str
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(error, match=sentence):
        torchsmith.compile(net, inputs=[torch.randn(1, 3, 9, 9)], **options)  # type: ignore[arg-type]


def test_an_unknown_op_in_the_middle_falls_back_with_its_reason() -> None:
    model, x = Wobbly().eval(), torch.randn(3, 6)
    fast = torchsmith.compile(model, inputs=[x], min_block_size=1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    explanation = torchsmith.explain(fast)
    assert len(explanation.segments) == 2
    (refusal,) = explanation.refusals
    assert refusal["op"] == "torchsmith_tests.wobble.default" and refusal["reason"] == "no converter"
    assert "test_compile.py" in refusal["where"]
    assert "wobble" in str(explanation)


def test_full_compilation_names_what_is_in_its_way() -> None:
    with pytest.raises(FullCompilationRequired, match=r"torchsmith_tests\.wobble\.default: no converter .*test_compile\.py"):
        torchsmith.compile(Wobbly().eval(), inputs=[torch.randn(3, 6)], require_full_compilation=True)


def test_a_model_with_nothing_for_an_engine_still_runs_and_says_so() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return wobble(x)

    x = torch.randn(4)
    fast = torchsmith.compile(Nothing().eval(), inputs=[x])
    torch.testing.assert_close(fast(x), wobble(x))
    assert torchsmith.explain(fast).summary == "no engine: all 1 ops run in PyTorch"


def test_a_wrong_shape_is_a_sentence(net: Net) -> None:
    fast = torchsmith.compile(net, inputs=[torchsmith.Input((1, 3, 9, 9))])
    with pytest.raises(InvalidInput, match=r"'x'.*\(1, 3, 8, 9\)"):
        fast(torch.randn(1, 3, 8, 9))


def test_sixteen_threads_get_right_answers(net: Net) -> None:
    fast = torchsmith.compile(
        net, inputs=[torchsmith.Input(min_shape=(1, 3, 9, 9), opt_shape=(2, 3, 9, 9), max_shape=(8, 3, 9, 9))]
    )
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            x = torch.randn(1 + seed % 8, 3, 9, 9, generator=generator)
            with torch.no_grad():
                given, wanted = fast(x), net(x)
            if not all(torch.allclose(given[k], wanted[k], rtol=1e-4, atol=1e-5) for k in wanted):
                wrong.append(f"thread {seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bf16_is_near_and_the_ends_stay_float32(net: Net) -> None:
    x = torch.randn(1, 3, 9, 9)
    fast = torchsmith.compile(net, inputs=[x], enabled_precisions={torch.float32, torch.bfloat16})
    with torch.no_grad():
        given, wanted = fast(x), net(x)
    assert {t.dtype for t in given.values()} == {torch.float32}
    for name in wanted:
        assert (given[name] - wanted[name]).norm() <= 2e-2 * wanted[name].norm()


def test_import_is_light() -> None:
    """Nothing heavy comes in before it is needed: a list of modules, which a clock could not show."""
    code = """
import sys, torch
before = set(sys.modules)
import torchsmith
print(*(name.split(".")[0] for name in set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"openvino", "sympy", "rich", "typer", "timm", "transformers", "matplotlib"}
    assert not (heavy | {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}) & set(done.stdout.split())


class Interrupted(nn.Module):
    """Is interrupted as it is traced, while `armed`."""

    armed = True

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            signal.raise_signal(signal.SIGALRM)
        return x + 1


@pytest.mark.parametrize("stage", ["capture", "build"])
def test_interrupting_a_compilation_leaves_nothing_behind(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    last = Interrupted()
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)], last).eval()
    x, before = torch.randn(1, 3, 16, 16), threading.active_count()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if stage == "build":
                patch.setattr(Interrupted, "armed", False)
                patch.setattr(OpenVinoBackend, "build", lambda *_: signal.raise_signal(signal.SIGALRM))
            torchsmith.compile(model, inputs=[x])
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before
    last.armed = False
    with torch.no_grad():
        torch.testing.assert_close(torchsmith.compile(model, inputs=[x])(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_interruption_that_pytorch_stumbles_over_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AssertionError("Trying to pop empty mode stack")

    monkeypatch.setattr(torch.export, "export", stumbles)
    with pytest.raises(KeyboardInterrupt):
        torchsmith.compile(nn.Linear(3, 3).eval(), inputs=[torch.randn(1, 3)])
