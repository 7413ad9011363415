from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

from torchsmith.dtypes import dtype
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.inputs import Axis, Device, Input, resolve

BATCH = Dim("batch", min=1, max=16)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Input((1, 3, 224, 224)), "Input((1, 3, 224, 224), f32)"),
        (Input([2], dtype=torch.half), "Input((2,), f16)"),
        (Input(shape=torch.Size((2, 3)), dtype=dtype.long), "Input((2, 3), i64)"),
        (Input((), dtype="bool"), "Input((), b)"),
        (Input((1, 3, 4, 4), format=torch.channels_last), "Input((1, 3, 4, 4), f32, channels_last)"),
        (Input((1, 3, 4, 4), memory_format="channels_last"), "Input((1, 3, 4, 4), f32, channels_last)"),
        (Input((BATCH, 3)), "Input((batch=1..16, 3), f32)"),
        (Input((2 * BATCH + 1, 3)), "Input((2*batch + 1=3..33, 3), f32)"),
        (Input((Dim("n"), 3)), "Input((n=0.., 3), f32)"),
        (Input((Dim.AUTO, 3)), "Input((2.., 3), f32)"),
        (Input((Dim.DYNAMIC(max=64), 3)), "Input((2..64, 3), f32)"),
        (Input(min_shape=(1, 3), opt_shape=(4, 3), max_shape=(8, 3)), "Input((1..8, 3), f32)"),
        (Input((np.int64(2), 3)), "Input((2, 3), f32)"),
    ],
)
def test_what_an_input_says(given: Input, shown: str) -> None:
    assert repr(given) == shown


def test_a_fixed_shape_and_a_range_as_torch_tensorrt_has_them() -> None:
    assert Input((1, 3)).shape == (1, 3)
    ranged = Input(min_shape=(1, 3), opt_shape=(4, 3), max_shape=(8, 3))
    assert ranged.shape == {"min_shape": (1, 3), "opt_shape": (4, 3), "max_shape": (8, 3)}
    assert ranged.is_dynamic and not Input((1, 3)).is_dynamic
    assert not Input(min_shape=(2, 3), opt_shape=(2, 3), max_shape=(2, 3)).is_dynamic, "min = max is fixed"


def test_the_size_to_be_fastest_at_is_the_largest_unless_said() -> None:
    assert Input(min_shape=(1, 3), max_shape=(8, 3)).sizes("opt") == (8, 3)
    assert Input((BATCH, 3)).sizes("opt") == (16, 3)
    assert Input((BATCH, 3), opt_shape=(4, 3)).sizes("opt") == (4, 3)
    assert Input((Dim("n", min=5), 3)).sizes("opt") == (5, 3), "without a limit: the least that can be traced"
    assert Input((Dim("n"), 3)).sizes("max") == (2, 3)


@pytest.mark.parametrize(
    ("axis", "traced"), [(Axis(1, 1, 8), 2), (Axis(1, 6, 8), 6), (Axis(0, 0, None), 2), (Axis(4, 4, 8), 4), (Axis(0, 1, 2), 2)]
)
def test_a_dynamic_size_is_not_traced_at_0_or_1(axis: Axis, traced: int) -> None:
    assert axis.traced == traced


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Input(), "needs a shape"),
        (lambda: Input((1, 3), min_shape=(1, 3), max_shape=(2, 3)), "either a shape, or min_shape with max_shape"),
        (lambda: Input(min_shape=(1, 3)), "has min_shape alone"),
        (lambda: Input(max_shape=(1, 3)), "has max_shape alone"),
        (lambda: Input(min_shape=(4, 3), max_shape=(2, 3)), "dimension 0: min_shape has 4, which is more than max_shape's 2"),
        (lambda: Input(min_shape=(1, 3), opt_shape=(9, 3), max_shape=(8, 3)), "opt_shape has 9, which is outside of 1..8"),
        (lambda: Input(min_shape=(1,), max_shape=(2, 3)), "have 1, 2 and 2 dimensions"),
        (lambda: Input((BATCH, 3), opt_shape=(32, 3)), "outside of batch=1..16"),
        (lambda: Input((BATCH, 3), opt_shape=(4, 3, 3)), "shape has 2 dimensions and opt_shape 3"),
        (lambda: Input((BATCH, 3), opt_shape=(4, 5)), "dimension 1 is 3 in shape and 5 in opt_shape"),
        (lambda: Input((1, 3), opt_shape=(1, 3)), "is fixed, so opt_shape says nothing"),
        (lambda: Input((-1, 3)), "dimension 0 of shape is -1; for one that may change use torch.export.Dim"),
        (lambda: Input((1.5, 3)), "dimension 0 of shape is 1.5"),
        (lambda: Input((None, 3)), "dimension 0 of shape is None"),
        (lambda: Input((Dim.STATIC, 3)), "write the number"),
        (lambda: Input(min_shape=(0,), max_shape=(1,)), "must reach 2"),
        (lambda: Input(3), "it takes a tuple of sizes"),
        (lambda: Input((1, 3), format="sideways"), "format='sideways'; it takes a torch.memory_format"),
        (lambda: Input((1, 3), format=torch.channels_last), "needs 4 dimensions, and the shape has 2"),
        (lambda: Input((1, 3, 4, 4), format="contiguous", memory_format="channels_last"), "give one of them"),
        (lambda: Input((1, 3), tensor_domain=(2, 1)), "is empty"),
        (lambda: Input((1, 3), tensor_domain=3), "a pair of numbers"),
        (lambda: Input((1, 3), torch_tensor=torch.zeros(2, 3)), "does not fit"),
        (lambda: Input.from_tensor([1, 2]), "takes a tensor"),
        (lambda: Input((1, 3)).example_tensor("average_shape"), "it takes min_shape, opt_shape or max_shape"),
    ],
)
def test_a_mistake_gets_a_sentence(make: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        make()


def test_fp8_is_inside_of_engines_only() -> None:
    with pytest.raises(InvalidInput, match="engines compute in fp8 inside, and take floats of more bits"):
        Input((1, 3), dtype=torch.float8_e4m3fn)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(InvalidOption, match="no element type"):
        Input((1, 3), dtype="float9")


def test_an_input_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Input((1, 3)).name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_examples_have_the_type_and_lie_in_the_domain(kind: torch.dtype) -> None:
    example = Input((50, 4), dtype=kind).example_tensor()
    assert example.dtype is kind and example.shape == (50, 4)
    assert example.float().min() >= 0 and example.float().max() < 2
    if kind.is_floating_point:
        wide = Input((50, 4), dtype=kind, tensor_domain=(-3, 5)).example_tensor()
        assert -3 <= wide.min() < 0 and 2 < wide.max() < 5


def test_examples_leave_the_global_generator_alone_and_repeat() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(Input((4,)).example_tensor(), Input((4,)).example_tensor())
    assert torch.equal(before, torch.get_rng_state())


def test_examples_come_in_the_format_and_at_each_size() -> None:
    ranged = Input(min_shape=(1, 3, 4, 4), opt_shape=(2, 3, 4, 4), max_shape=(8, 3, 4, 4), format=torch.channels_last)
    assert ranged.example_tensor().is_contiguous(memory_format=torch.channels_last)
    assert [len(ranged.example_tensor(f"{f}_shape")) for f in ("min", "opt", "max")] == [1, 2, 8]


def test_an_input_is_read_off_a_tensor() -> None:
    tensor = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    read = Input.from_tensor(tensor)
    assert read.format is torch.channels_last and read.shape == (2, 3, 4, 5) and read.example_tensor() is tensor
    assert [i.shape for i in Input.from_tensors([torch.rand(2), torch.rand(3)])] == [(2,), (3,)]
    gaps = torch.rand(4, 4)[:, ::2]
    with pytest.raises(InvalidInput, match=r"pass tensor.contiguous\(\)"):
        Input.from_tensor(gaps)
    assert Input.from_tensor(gaps, disable_memory_format_check=True).shape == (4, 2)


@pytest.mark.parametrize(
    ("device", "name", "gpu"),
    [
        (Device("cuda:1"), "cuda:1", 1),
        (Device("gpu:0"), "cuda:0", 0),
        (Device("cuda"), "cuda", 0),
        (Device("cpu"), "cpu", -1),
        (Device(gpu_id=2), "cuda:2", 2),
        (Device(torch.device("cpu")), "cpu", -1),
        (Device("cuda:0", allow_gpu_fallback=True), "cuda:0", 0),
        (Device.of("cpu"), "cpu", -1),
        (Device.of(1), "cuda:1", 1),
        (Device.of(Device("cpu")), "cpu", -1),
    ],
)
def test_a_device_by_every_name(device: Device, name: str, gpu: int) -> None:
    assert device.torch == torch.device(name) and device.gpu_id == gpu and device.type == torch.device(name).type


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Device(), "either a name such as 'cuda:0' or 'cpu', or gpu_id"),
        (lambda: Device("cuda:0", gpu_id=0), "either a name"),
        (lambda: Device("dla:0"), "DLA cores are not supported"),
        (lambda: Device(gpu_id=0, dla_core=1), "DLA cores are not supported"),
        (lambda: Device("tpu:0"), "names no device"),
        (lambda: Device("meta"), "is not supported"),
    ],
)
def test_a_device_that_is_none_gets_a_sentence(make: Any, why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        make()


def test_a_call_is_resolved_in_its_own_structure() -> None:
    mask = torch.ones(2, dtype=torch.bool)
    call = resolve([Input((2, 3)), {"a": [Input((4,)), None], "b": mask}, 3, "mode", True], {"scale": 0.5})
    x, table, *constants = call.args
    assert x.shape == (2, 3) and table["a"][0].shape == (4,) and table["a"][1] is None and table["b"] is mask
    assert constants == [3, "mode", True] and call.kwargs == {"scale": 0.5}
    assert not call.is_dynamic and call.dynamic_shapes(lambda x, t, n, m, b, scale: None) is None


@pytest.mark.parametrize("inputs", [Input((2,)), [Input((2,))], (Input((2,)),)])
def test_one_input_may_stand_alone(inputs: Any) -> None:
    assert [a.shape for a in resolve(inputs).args] == [(2,)]


def test_a_dict_or_a_named_tuple_is_one_argument() -> None:
    assert set(resolve({"x": Input((2,))}).args[0]) == {"x"}
    Pair = collections.namedtuple("Pair", "a b")
    (pair,) = resolve(Pair(Input((2,)), Input((3,)))).args
    assert isinstance(pair, Pair) and pair.b.shape == (3,)


def test_two_inputs_of_one_shape_get_different_numbers() -> None:
    a, b = resolve([Input((4,)), Input((4,))]).args
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([np.zeros(3)], r"inputs\[0\] is a numpy.ndarray.*torch.from_numpy"),
        ([{"x": object()}], r"inputs\[0\]\['x'\] is a object"),
        ([collections.UserDict(x=1)], r"pass dict\(...\) of it"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_its_place(inputs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        resolve(inputs)


def test_keyword_inputs_are_a_dict() -> None:
    with pytest.raises(InvalidInput, match="kwarg_inputs takes a dict"):
        resolve([], [Input((2,))])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"kwarg_inputs\['mask'\] is a object"):
        resolve([], {"mask": object()})


def test_one_dim_in_two_inputs_is_one_size() -> None:
    call = resolve([Input((BATCH, 3)), Input((2 * BATCH, 5))])
    assert [tuple(a.shape) for a in call.args] == [(16, 3), (32, 5)]
    assert [[tuple(a.shape) for a in call.at(f)[0]] for f in ("min", "max")] == [[(1, 3), (2, 5)], [(16, 3), (32, 5)]]
    assert call.dynamic_shapes(lambda x, y: None) == ({0: BATCH}, {0: call.dims[1][0]})


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([Input((BATCH, 3)), Input((Dim("batch", min=1, max=8), 3))], "Dim 'batch' is batch=1..16 in .* and batch=1..8 in"),
        ([Input((BATCH, 3), opt_shape=(4, 3)), Input((BATCH, 3))], r"has opt_shape 4 in inputs\[0\] and 16 in inputs\[1\]"),
        ([Input((BATCH, 3)), Input((2 * BATCH, 3), opt_shape=(8, 3))], r"inputs\[1\] has opt_shape 8 for 2\*batch, which is 32"),
    ],
)
def test_one_dim_with_two_meanings_is_refused(inputs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        resolve(inputs)


def test_equal_ranges_in_dimension_0_are_one_batch_and_others_are_not() -> None:
    ranged = {"min_shape": (1, 2), "max_shape": (8, 64)}
    call = resolve([Input(**ranged), Input(**ranged), Input(min_shape=(1, 2), max_shape=(4, 64), name="text")])
    (a, b, c) = ({i: d.__name__ for i, d in own.items()} for own in call.dims)
    assert a == {0: "batch", 1: "inputs_0_dim1"} and b == {0: "batch", 1: "inputs_1_dim1"}
    assert c == {0: "text_dim0", 1: "text_dim1"}


@dataclasses.dataclass
class Pair:
    first: Any
    second: Any


torch.export.register_dataclass(Pair)


def test_dynamic_shapes_follow_the_signature_and_the_users_classes() -> None:
    call = resolve([Pair(Input((BATCH, 2)), 3)], {"late": Input((BATCH,)), "early": None})
    shapes = call.dynamic_shapes(lambda pair, early, late: None)
    assert shapes == ([{0: BATCH}, None], None, {0: BATCH})
    assert call.dynamic_shapes(lambda *args, **kwargs: None) == (([{0: BATCH}, None],), {"late": {0: BATCH}, "early": None})
    other = Dim("other")
    assert call.dynamic_shapes(lambda pair, early, late: None, {"batch": other}) == ([{0: other}, None], None, {0: other})
