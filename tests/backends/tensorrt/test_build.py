"""Graphs into TensorRT's engines: options, profiles, interruption, and engines as data."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.cuda.timing_cache import Timing, TimingCache
from torchsmith.backends.tensorrt import build, emit, engine, library
from torchsmith.config import BuildConfig, Config
from torchsmith.debug.progress import Progress
from torchsmith.errors import BuildError, EngineMismatch, InvalidOption
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.unary import Unary
from torchsmith.target import Target

if library.installed() is None:
    pytest.skip("TensorRT is not installed", allow_module_level=True)
SM_89 = Target("cuda", "sm_89")


def copy(*shape: Any, high: int | None = 8) -> Graph:
    """A graph that hands its only input out."""
    sizes = tuple(symbol(size) if isinstance(size, str) else size for size in shape)
    with Builder({size: (2, high) for size in shape if isinstance(size, str)}) as b:
        return b.finish([b.input(TensorType(sizes, torch.float16))])


def built(graph: Graph, **options: Any) -> engine.Engine:
    return engine.parse(build.build_engine(graph, SM_89, BuildConfig(**options)))


def test_an_engine_is_data() -> None:
    found = built(copy(4, "n"))
    assert (found.library, found.version) == ("TensorRT-RTX" if library.is_rtx() else "TensorRT", library.trt().__version__)
    assert found.target == SM_89 and found.plan.numel() > 1000
    assert found.inputs == (engine.Edge("input0", (4, "n"), torch.float16),)
    assert found.outputs == (engine.Edge("output0", (4, "n"), torch.float16),)
    assert [(layer.kind, layer.outputs) for layer in found.layers] == [("identity", ("half[4, ?]",))]


def test_damaged_engines_are_refused() -> None:
    data = build.build_engine(copy(4), SM_89, BuildConfig())
    middle = len(data) // 2
    for wrong in (b"", b"no engine", data[:-1], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]):
        with pytest.raises(EngineMismatch, match="these bytes are no tensorrt engine"):
            engine.parse(wrong)
    with pytest.raises(EngineMismatch, match="format 9, and this torchsmith reads up to 1"):
        engine.parse(data.replace(b'\\"format\\": 1', b'\\"format\\": 9'))


def test_options_reach_tensorrt() -> None:
    config = BuildConfig(workspace_size=64 << 20, optimization_level=2, max_aux_streams=1, sparse_weights=True, disable_tf32=True)
    module = library.trt()
    with build.configured(config, SM_89) as settings:
        assert settings.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 64 << 20
        assert settings.builder_optimization_level == 2 and settings.max_aux_streams == 1
        assert settings.get_flag(module.BuilderFlag.SPARSE_WEIGHTS) and not settings.get_flag(module.BuilderFlag.TF32)
    with build.configured(BuildConfig(), SM_89) as settings:
        assert not settings.get_flag(module.BuilderFlag.SPARSE_WEIGHTS) and settings.get_flag(module.BuilderFlag.TF32)


@pytest.mark.parametrize("name", ["optimization_level", "max_aux_streams", "workspace_size"])
@pytest.mark.parametrize("value", [-1, 1.5, "much"])
def test_options_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"{name}="):
        Config.from_options(**{name: value})


def test_names_of_options() -> None:
    given = {"optimization_level": 5, "max_aux_streams": 0, "engine_capability": "safety", "version_compatible": True}
    assert dataclasses.replace(BuildConfig(), **given) == Config.from_options(**given).build  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"optimization_level=6; it takes a whole number from 0 to 5"):
        Config.from_options(optimization_level=6)


def test_a_profile_has_the_ends_and_the_middle() -> None:
    profile = build.profile_of(copy("n", 3, high=32))
    assert [tuple(shape) for shape in profile.get_shape("input0")] == [(2, 3), (8, 3), (32, 3)]
    assert build.profile_of(copy(4, 3)) is None


def test_a_profile_has_the_typical_sizes() -> None:
    for typical, wanted in ((3, 3), (1, 2), (99, 32)):
        profile = build.profile_of(dataclasses.replace(copy("n", 3, high=32), typical={"n": typical}))
        assert [tuple(shape) for shape in profile.get_shape("input0")] == [(2, 3), (wanted, 3), (32, 3)]


def test_opt_shape_is_what_engines_are_tuned_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found, whole = list[Any](), build.profile_of
    monkeypatch.setattr(build, "profile_of", lambda graph: found.append(whole(graph)) or found[-1])
    shapes = []
    sizes = {"min_shape": (1, 3), "opt_shape": (5, 3), "max_shape": (16, 3)}
    for given in (sizes, {name: shape for name, shape in sizes.items() if name != "opt_shape"}):
        options: dict[str, Any] = {"backend": "tensorrt", "target": "sm_89", "min_block_size": 1}
        torchsmith.compile(nn.Linear(3, 2).eval(), inputs=[torchsmith.Input(**given)], **options)
        shapes.append([tuple(shape) for shape in found[-1].get_shape("input0")])
    assert shapes == [[(1, 3), (5, 3), (16, 3)], [(1, 3), (16, 3), (16, 3)]]


def test_a_size_without_a_limit() -> None:
    with pytest.raises(BuildError, match=r"the most that the dynamic size n can be; give it, as in torchsmith\.Input"):
        built(copy("n", high=None))


class Settings:
    """As much of a builder's configuration as timings take part in. It takes times that begin with "fits"."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data) if not data or data.startswith(b"fits") else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch  # times of another GPU choose slow kernels
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache.data + b"fits, ")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """TensorRT-RTX times nothing when it builds; the others do."""
    monkeypatch.setattr(build, "is_rtx", lambda: False)
    return Settings()


def test_times_are_kept_and_used(timed: Settings, tmp_path: Path) -> None:
    file = tmp_path / "new" / "timings"
    for built_so_far in (1, 2):
        with build.timings(timed, str(file)):
            assert timed.cache.data == b"fits, " * (built_so_far - 1)
        assert file.read_bytes() == b"fits, " * built_so_far
    assert [p.name for p in file.parent.iterdir()] == ["timings"]


def test_times_of_another_version_are_replaced(timed: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "timings"
    file.write_bytes(b"of TensorRT 8")
    with caplog.at_level(logging.WARNING, "torchsmith.tensorrt"), build.timings(timed, str(file)):
        pass
    assert file.read_bytes() == b"fits, "
    assert f"the times in {file} are of another version of TensorRT or another GPU; they are replaced" in caplog.text


def test_times_of_our_own_kernels_are_not_overwritten(timed: Settings, tmp_path: Path) -> None:
    cache = TimingCache(SM_89, tmp_path / "timings")
    cache.put("a signature", None, Timing(1.0, 0.0, ""))
    kept = (tmp_path / "timings").read_bytes()
    with (
        pytest.raises(InvalidOption, match="has times of the cuda backend's kernels; give TensorRT a file of its own"),
        build.timings(timed, str(tmp_path / "timings")),
    ):
        raise AssertionError("it is built nevertheless")
    assert kept and (tmp_path / "timings").read_bytes() == kept


def test_times_that_cannot_be_kept_cost_no_engine(
    timed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_replace", full)
    with caplog.at_level(logging.WARNING, "torchsmith.tensorrt"), build.timings(timed, str(tmp_path / "timings")):
        pass
    assert "could not be kept in" in caplog.text and "No space left on device" in caplog.text


def test_a_file_that_cannot_be_written_is_told_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "timings"):
        with pytest.raises(InvalidOption, match=r"timing_cache_path=.* cannot be used \(.*\); give a file that can be written"):
            built(copy(4), timing_cache_path=str(path))


@pytest.mark.skipif(not library.is_rtx(), reason="TensorRT has it all")
def test_what_tensorrt_rtx_does_not_offer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for option, given in {"version_compatible=True": True, "engine_capability='safety'": "safety"}.items():
        with pytest.raises(InvalidOption) as refused:
            built(copy(4), **{option.partition("=")[0]: given})
        assert str(refused.value) == f"{option}, which {library.title()} does not offer; leave it out, or install TensorRT"
    with caplog.at_level(logging.WARNING, "torchsmith.tensorrt"):
        built(copy(4), timing_cache_path=str(tmp_path / "timings"), hardware_compatible=True)
    assert "times none as it builds; timing_cache_path is not used" in caplog.text and not (tmp_path / "timings").exists()


def test_an_interrupted_build_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's code is between the one who presses Ctrl-C and us."""

    def pressed(self: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", pressed)
    with pytest.raises(KeyboardInterrupt):
        built(copy(4, 4))
    monkeypatch.undo()
    assert built(copy(4, 4)).plan.numel()  # and the next one works


def test_tensorrt_says_why_it_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def failing(network: Any, settings: Any) -> None:
        name = network.get_layer(0).name
        library.log().log(library.trt().ILogger.ERROR, f"Error Code 9: no kernel for {name}")

    monkeypatch.setattr(build, "watched", failing)
    with caplog.at_level(logging.ERROR, "torchsmith.tensorrt"), pytest.raises(BuildError) as failed:
        built(copy(4))
    assert "could not build the engine: Error Code 9: no kernel for the edge [1] (at the edge [1])" in str(failed.value)
    assert "no kernel for the edge" in caplog.text


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.sin(y) + 1


def test_a_failed_build_names_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here TensorRT really fails: the sine is emitted with a layer that TensorRT-RTX has no kernel for."""

    def broken(e: Any, op: Unary, x: Any) -> Any:
        if op.function != "sin":
            return whole(e, op, x)
        found = e.layer(e.network.add_non_zero(x))
        return e.shaped(
            e.to(e.layer(e.network.add_reduce(found, library.trt().ReduceOperation.SUM, 3, True)), torch.float32), (1, 1)
        )

    whole = emit.emitter.all()[Unary]
    monkeypatch.setitem(emit.emitter.all(), Unary, broken)
    with pytest.raises(BuildError) as failed:
        torchsmith.compile(Net().eval(), inputs=[torch.ones(1, 1)], backend="tensorrt", target="sm_89", min_block_size=1)
    said = str(failed.value)
    assert said.startswith(f"{library.title()} could not build the engine: ")
    assert re.search(
        r"\(at \d+ Unary of aten\.sin\.default at .*test_build\.py:\d+  return torch\.sin\(y\) \+ 1 \[\d+\]\)$", said
    ), said
