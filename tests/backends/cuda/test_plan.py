"""Engines as data: what is written is read back, and whatever else is refused in a sentence."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsmith.backends.cuda import build, plan
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.plan import CallStep, LaunchStep, read
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.registry import load_all
from torchsmith.ops.top_k import TopK
from torchsmith.ops.unary import Unary
from torchsmith.target import Target

pytest.importorskip("triton")
load_all()
SM_90 = Target("cuda", "sm_90")


@functools.cache
def engine() -> bytes:
    """A product with a relu as a kernel over a size that may change, and a sort in PyTorch."""
    n = symbol("n")
    with Builder({"n": (1, 64)}) as b:
        x = b.input(TensorType((n, 16), torch.float16))
        weight = b.constant(torch.randn(24, 16).half(), "weight")
        y = Unary("relu")(Linear()(x, weight))
        best, _ = TopK(3, 1, True, False)(y)
        graph = b.finish([best, y])
    return BACKEND.build(graph, SM_90, BuildConfig(tune=False, compile_workers=1))


def parts() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, the plan inside it, and the tensors' bytes."""
    data = engine()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["plan"]), data[8 + size :]


def with_plan(change: Callable[[dict[str, Any]], Any]) -> bytes:
    header, data, rest = parts()
    change(data)
    header["__metadata__"]["plan"] = json.dumps(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def test_what_is_written_is_read_back() -> None:
    found, tensors = read(engine())
    assert found.target == SM_90 and found.built_with.keys() == build.versions().keys()
    (variant,) = found.variants
    kinds = [type(step) for step in variant.steps]
    assert kinds == [LaunchStep, CallStep], [step.about for step in variant.steps]
    assert {"weight"} <= {name.partition(".")[0] for name in found.constants}
    for kernel in found.kernels:
        assert tensors[kernel.code].numpy().tobytes().startswith(b"\x7fELF") and kernel.pdl
    launch, call = variant.steps
    assert isinstance(launch, LaunchStep) and isinstance(call, CallStep)
    assert launch.writes == call.inputs and call.outputs[0] == found.outputs[0]
    assert found.values[found.inputs[0]].shape == ("n", 16)


def test_an_engine_is_the_same_each_time() -> None:
    engine.cache_clear()
    torch.manual_seed(0)
    first = engine()
    engine.cache_clear()
    torch.manual_seed(0)
    assert engine() == first


def plan_edits() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    def step(data: dict[str, Any], kind: str) -> dict[str, Any]:
        found: dict[str, Any] = next(s for s in data["variants"][0]["steps"] if kind in s)
        return found

    def value(data: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = data["values"][data["outputs"][0]]
        return found

    return {
        "a newer format": (lambda d: d.update(format=99), r"format 99, and this torchsmith reads up to \d+; update torchsmith"),
        "no steps": (lambda d: d.update(variants=[]), "it has no steps"),
        "an unknown op": (lambda d: step(d, "op").update(op="RemoveAllFiles"), "RemoveAllFiles"),
        "an op with other attributes": (lambda d: step(d, "op").update(attributes={"k": 3}), "missing 3 required"),
        "an unknown value": (lambda d: step(d, "op").update(inputs=["nobody"]), "value 'nobody' is not described"),
        "an unknown output": (lambda d: d.update(outputs=["nobody"]), "value 'nobody' is not described"),
        "a kernel that is not there": (lambda d: step(d, "kernel").update(kernel=7), "launches kernel 7"),
        "a kernel by a negative number": (lambda d: step(d, "kernel").update(kernel=-1), "launches kernel -1"),
        "too few arguments": (lambda d: step(d, "kernel")["arguments"].pop(), "launches kernel 0 with"),
        "an address as a number": (lambda d: step(d, "kernel")["arguments"].__setitem__(0, 4096), "argument of type .* is 4096"),
        "a grid of two": (lambda d: step(d, "kernel").update(grid=[1, 1]), "a grid is"),
        "a grid of code": (lambda d: step(d, "kernel").update(grid=["__import__('os')", 1, 1]), "no cuda engine"),
        "a grid of a fraction": (lambda d: step(d, "kernel").update(grid=[1.5, 1, 1]), "1.5 is no size"),
        "too many threads": (lambda d: d["kernels"][0].update(threads=4096), "4096 threads"),
        "shared memory for all": (lambda d: d["kernels"][0].update(shared_bytes=1 << 30), "bytes of shared memory"),
        "machine code that is missing": (lambda d: d["kernels"][0].update(code="code:nothing"), "code 'code:nothing' is missing"),
        "weights as machine code": (lambda d: d["kernels"][0].update(code="weight"), "code 'weight' is missing"),
        "an argument of an unknown type": (lambda d: d["kernels"][0]["types"].__setitem__(-1, "f7"), "an argument of type 'f7'"),
        "more shared memory than there is": (lambda d: d["variants"][0].update(carveout=101), "101 percent of an SM's memory"),
        "a dtype that is none": (lambda d: value(d).update(dtype="nn"), "'nn' is no dtype"),
        "strides that are too few": (lambda d: value(d).update(strides=[1]), "has strides"),
        "a root inside another": (lambda d: value(d).update(root="nobody"), "value 'nobody' is not described"),
        "a constant of another shape": (
            lambda d: [v.update(shape=[5, 5], strides=[5, 1]) for n, v in d["values"].items() if n.startswith("weight")],
            "constant weight.* is torch.float16 .*, and was to be",
        ),
        "no target": (lambda d: d.pop("target"), "KeyError: 'target'"),
        "values as a list": (lambda d: d.update(values=[]), "no cuda engine"),
    }


@pytest.mark.parametrize("name", plan_edits())
def test_a_plan_that_is_wrong(name: str) -> None:
    change, sentence = plan_edits()[name]
    with pytest.raises(EngineMismatch, match=sentence):
        read(with_plan(change))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 64, b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"\x7fELF" * 20], ids=lambda d: str(d[:8])
)
def test_bytes_that_are_no_engine(data: bytes) -> None:
    with pytest.raises(EngineMismatch, match=r"these bytes are no cuda engine .*; compile the model again"):
        read(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """Changed weights cannot be seen here (the engine's checksum is the runtime's), anything else is a sentence."""
    given_ = bytearray(engine())
    head = 8 + int.from_bytes(given_[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 15), st.integers(8, head - 1), st.integers(0, len(given_) - 1)))
        given_[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(given_))))
    try:
        read(bytes(given_[:cut]))
    except EngineMismatch as refusal:
        assert "compile the model again" in str(refusal) or "update torchsmith" in str(refusal)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 1 << 40), st.floats(), st.text(max_size=6), st.sampled_from(["n", "x", "*fp16"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_absurd_plans_are_read_or_refused(data: st.DataObject) -> None:
    """One place of the plan has something else."""

    def change(found: Any) -> None:
        while True:
            keys = list(found) if isinstance(found, dict) else list(range(len(found)))
            if not keys:
                return
            key = data.draw(st.sampled_from(keys))
            inner = found[key]
            if not isinstance(inner, (dict, list)) or not inner or data.draw(st.integers(0, 4)) == 0:
                if data.draw(st.booleans()):
                    found[key] = data.draw(JSON)
                else:
                    del found[key]
                return
            found = inner

    try:
        found, _ = read(with_plan(change))
    except EngineMismatch:
        return
    assert isinstance(found, plan.Plan)


def test_a_plan_may_be_edited_without_change() -> None:
    assert read(with_plan(lambda d: copy.deepcopy(d)))[0] == read(engine())[0]
