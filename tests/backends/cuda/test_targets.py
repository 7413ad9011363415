"""Every model of the road is built whole for GPUs that are not here: the engines' kernels compile, and no op is left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

import torchsmith
from tests.test_models import MODELS
from torchsmith.backends.cuda.plan import CallStep, Plan, read
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.tensors import to_bytes

pytest.importorskip("triton")
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
CASES = [
    *((name, arch, HALF) for arch in (80, 90, 100) for name in MODELS),
    *(("mobilenetv3_large_100", 90, dtype) for dtype in (BFLOAT, FLOAT)),
    *(("vit_tiny_patch16_224", 90, dtype) for dtype in (BFLOAT, FLOAT)),
]


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one model's build compiled serves the others, in every worker of this run, and nothing of earlier runs does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "kernels"))
        yield


def plan_of(module: CompiledModule) -> Plan:
    (call,) = module.plan.engine_calls
    return read(to_bytes(module.program.constants[call.constant]))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arch", "dtype"), CASES, ids=[f"{name}-sm_{arch}-{str(dtype)[6:]}" for name, arch, dtype in CASES]
)
def test_a_model_is_built_whole(name: str, arch: int, dtype: torch.dtype) -> None:
    model, args, kwargs = MODELS[name]()
    module = torchsmith.compile(
        model,
        inputs=args,
        kwarg_inputs=kwargs,
        target=f"sm_{arch}",
        enabled_precisions={dtype},
        tune=False,
        compile_workers=1,
        require_full_compilation=True,
    )
    assert isinstance(module, CompiledModule)
    explained = torchsmith.explain(module)
    assert len(explained.segments) == 1 and not explained.refusals and not module.plan.torch_calls
    plan = plan_of(module)
    assert plan.target.arch == f"sm_{arch}" and any(kernel.pdl for kernel in plan.kernels) == (arch >= 90)
    (variant,) = plan.variants
    left = Counter(type(step.op).__name__ for step in variant.steps if isinstance(step, CallStep))
    print(f"{name} sm_{arch}: {len(variant.steps)} steps, {len(plan.kernels)} kernels, in PyTorch {dict(left)}")
