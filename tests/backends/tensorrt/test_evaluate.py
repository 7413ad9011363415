"""The evaluation of TensorRT networks, which every emitter is judged by, against PyTorch's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.evaluate import evaluate
from tests.backends.tensorrt.layers import DTYPES
from torchsmith.backends.tensorrt.library import MISSING, builder, installed, trt

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
TYPES = {dtype: name for name, dtype in DTYPES.items()}


class Network:
    """A network under construction by hand: inputs come from tensors, which are also what it is evaluated with."""

    def __init__(self) -> None:
        flag = getattr(getattr(trt(), "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
        self.to = builder().create_network(0 if flag is None else 1 << int(flag))
        self.inputs: dict[str, Tensor] = {}
        self.kept: list[Tensor] = []

    def input(self, tensor: Tensor, *shape: int) -> Any:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = tensor
        return self.to.add_input(name, getattr(trt().DataType, TYPES[tensor.dtype]), shape or tuple(tensor.shape))

    def weights(self, tensor: Tensor) -> Any:
        self.kept.append(tensor.contiguous())
        return trt().Weights(getattr(trt().DataType, TYPES[tensor.dtype]), self.kept[-1].data_ptr(), tensor.numel())

    def constant(self, tensor: Tensor) -> Any:
        return self.to.add_constant(tuple(tensor.shape), self.weights(tensor)).get_output(0)

    def ints(self, *values: int) -> Any:
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def of(self, *layers: Any) -> list[Tensor]:
        """What the layers give, evaluated."""
        for layer in layers:
            self.to.mark_output(layer.get_output(0))
        return list(evaluate(self.to, self.inputs).values())


IMAGE = torch.randn(2, 6, 9, 11)
DTYPES_16 = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES_16)
def test_weights_are_read_where_the_network_points(dtype: torch.dtype) -> None:
    net = Network()
    x, kernel, bias = IMAGE.to(dtype), torch.randn(4, 3, 3, 3).to(dtype), torch.randn(4).to(dtype)
    layer = net.to.add_convolution_nd(net.input(x), 4, (3, 3), net.weights(kernel), net.weights(bias))
    layer.stride_nd, layer.pre_padding, layer.post_padding, layer.num_groups = (2, 1), (1, 0), (0, 2), 2
    (found,) = net.of(layer)
    wanted = F.conv2d(F.pad(x.float(), (0, 2, 1, 0)), kernel.float(), bias.float(), (2, 1), groups=2)
    torch.testing.assert_close(found, wanted.to(dtype))


def test_deconvolution() -> None:
    net = Network()
    kernel, bias = torch.randn(6, 2, 3, 3), torch.randn(4)
    layer = net.to.add_deconvolution_nd(net.input(IMAGE), 4, (3, 3), net.weights(kernel), net.weights(bias))
    layer.stride_nd, layer.pre_padding, layer.post_padding, layer.num_groups = (2, 2), (1, 1), (0, 1), 2
    (found,) = net.of(layer)
    wanted = F.conv_transpose2d(IMAGE, kernel, bias, 2, (1, 1), (1, 0), groups=2)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("excluded", [False, True])
def test_average_pooling(up: bool, excluded: bool) -> None:
    net = Network()
    layer = net.to.add_pooling_nd(net.input(IMAGE), trt().PoolingType.AVERAGE, (3, 3))
    layer.stride_nd, layer.padding_nd, layer.average_count_excludes_padding = (3, 3), (1, 0), excluded
    layer.padding_mode = trt().PaddingMode.EXPLICIT_ROUND_UP if up else trt().PaddingMode.EXPLICIT_ROUND_DOWN
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.avg_pool2d(IMAGE, 3, 3, (1, 0), ceil_mode=up, count_include_pad=not excluded))


@pytest.mark.parametrize("up", [False, True])
def test_max_pooling(up: bool) -> None:
    net = Network()
    layer = net.to.add_pooling_nd(net.input(IMAGE), trt().PoolingType.MAX, (3, 3))
    layer.stride_nd, layer.padding_nd = (3, 3), (1, 0)
    layer.padding_mode = trt().PaddingMode.EXPLICIT_ROUND_UP if up else trt().PaddingMode.EXPLICIT_ROUND_DOWN
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.max_pool2d(IMAGE, 3, 3, (1, 0), ceil_mode=up))


@pytest.mark.parametrize(
    ("mode", "corners", "ours", "transformation", "rounding"),
    [
        ("nearest", None, "NEAREST", "ASYMMETRIC", "FLOOR"),
        ("nearest-exact", None, "NEAREST", "HALF_PIXEL", "HALF_UP"),
        ("bilinear", False, "LINEAR", "HALF_PIXEL", None),
        ("bilinear", True, "LINEAR", "ALIGN_CORNERS", None),
        ("bicubic", False, "CUBIC", "HALF_PIXEL", None),
        ("bicubic", True, "CUBIC", "ALIGN_CORNERS", None),
    ],
)
def test_resize(mode: str, corners: bool | None, ours: str, transformation: str, rounding: str | None) -> None:
    module = trt()
    for size in ((13, 20), (5, 30), (9, 4), (1, 1)):
        net = Network()
        layer = net.to.add_resize(net.input(IMAGE))
        layer.resize_mode = getattr(module.InterpolationMode, ours)
        layer.coordinate_transformation = getattr(module.ResizeCoordinateTransformation, transformation)
        if rounding:
            layer.nearest_rounding = getattr(module.ResizeRoundMode, rounding)
        layer.shape = (2, 6, *size)
        (found,) = net.of(layer)
        torch.testing.assert_close(found, F.interpolate(IMAGE, size, mode=mode, align_corners=corners), atol=2e-5, rtol=1e-5)


def test_samples_at_a_grid() -> None:
    """Places of the example in NVIDIA's documentation of the operator, with what it says is there to three digits."""
    net = Network()
    grid = torch.tensor([[-2.0, -1.83], [-0.67, -0.5], [0.0, 0.17], [0.67, 0.83], [1.0, 1.17]]).reshape(1, 1, 5, 2)
    layer = net.to.add_grid_sample(net.input(torch.arange(9.0).reshape(1, 1, 3, 3)), net.input(grid))
    layer.align_corners, layer.interpolation_mode, layer.sample_mode = False, trt().InterpolationMode.LINEAR, trt().SampleMode.FILL
    (found,) = net.of(layer)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 0.746, 4.764, 6.009, 0.979]), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("mode", "theirs"), [("FILL", "constant"), ("WRAP", "circular"), ("CLAMP", "replicate"), ("REFLECT", "reflect")]
)
def test_slices_past_the_edges(mode: str, theirs: str) -> None:
    net = Network()
    layer = net.to.add_slice(net.input(IMAGE, 2, 6, -1, 11), (0, 0, -2, -3), (2, 6, 13, 15), (1, 1, 1, 1))
    layer.mode = getattr(trt().SampleMode, mode)
    layer.set_input(2, net.ints(2, 6, 13, 15))
    if mode == "FILL":
        layer.set_input(4, net.constant(torch.tensor(0.5)))
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.pad(IMAGE, (3, 1, 2, 2), theirs, **({"value": 0.5} if mode == "FILL" else {})))


def test_slices_within_bounds() -> None:
    net = Network()
    x = net.input(IMAGE)
    layer = net.to.add_slice(x, (0, 1, 0, 10), (2, 2, 9, 3), (1, 2, 1, -4))
    (found,) = net.of(layer)
    torch.testing.assert_close(found, IMAGE[:, 1:5:2, :, [10, 6, 2]])
    net = Network()
    layer = net.to.add_slice(net.input(IMAGE, 2, 6, 9, -1), (0, 0, 0, 9), (2, 6, 9, 3), (1, 1, 1, 1))
    with pytest.raises(AssertionError, match="a slice of"):
        net.of(layer)


def test_shuffles() -> None:
    net = Network()
    x = net.input(IMAGE, 2, 6, -1, 11)
    first = net.to.add_shuffle(x)
    first.first_transpose, first.reshape_dims, first.second_transpose = (0, 2, 1, 3), (0, -1, 22), (2, 0, 1)
    second = net.to.add_shuffle(x)
    second.zero_is_placeholder = False
    second.set_input(1, net.to.add_concatenation([net.to.add_shape(x).get_output(0), net.ints(1)]).get_output(0))
    found = net.of(first, second)
    torch.testing.assert_close(found[0], IMAGE.permute(0, 2, 1, 3).reshape(2, -1, 22).permute(2, 0, 1))
    torch.testing.assert_close(found[1], IMAGE[..., None])


def test_gathers_and_scatters() -> None:
    net, modes = Network(), trt().GatherMode
    index, elements = torch.tensor([[5, 0], [1, 1]]), torch.randint(0, 6, (2, 4, 9, 11))
    tuples = torch.tensor([[1, 0], [0, 5], [1, 3]])
    x, at = net.input(IMAGE), net.input(index)
    together = net.to.add_gather(x, at, 1)
    together.num_elementwise_dims = 1
    by_element = net.to.add_gather_v2(x, net.input(elements), modes.ELEMENT)
    by_element.axis = 1
    values = torch.randn(3, 9, 11)
    scattered = net.to.add_scatter(x, net.input(tuples), net.input(values), trt().ScatterMode.ND)
    found = net.of(
        net.to.add_gather(x, at, 1), together, by_element, net.to.add_gather_v2(x, net.input(tuples), modes.ND), scattered
    )
    torch.testing.assert_close(found[0], IMAGE[:, index])
    torch.testing.assert_close(found[1], torch.stack([IMAGE[0, index[0]], IMAGE[1, index[1]]]))
    torch.testing.assert_close(found[2], IMAGE.gather(1, elements))
    torch.testing.assert_close(found[3], IMAGE[tuples[:, 0], tuples[:, 1]])
    torch.testing.assert_close(found[4], IMAGE.index_put((tuples[:, 0], tuples[:, 1]), values))


def test_a_top_k_of_equal_elements_gives_the_first() -> None:
    net = Network()
    x = torch.tensor([[3, 1, 3, 1]], dtype=torch.int32)
    given = net.input(x)
    for op, wanted in (("MAX", [0, 2]), ("MIN", [1, 3])):
        layer = net.to.add_topk(given, getattr(trt().TopKOperation, op), 2, 2)
        net.to.mark_output(layer.get_output(1))
        found = evaluate(net.to, net.inputs)
        assert found[layer.get_output(1).name].tolist() == [wanted]


@pytest.mark.parametrize("groups", [1, 3])
def test_normalization(groups: int) -> None:
    net = Network()
    x, scale, shift = torch.randn(2, 6, 5), torch.rand(1, 6, 1), torch.rand(1, 6, 1)
    add = getattr(net.to, "add_normalization_v2", None)
    if add is None:
        pytest.skip("this TensorRT has the first version of the layer alone")
    layer = add(net.input(x), net.constant(scale), net.constant(shift), 1 << 2)
    layer.num_groups, layer.epsilon = groups, 1e-3
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.group_norm(x, 6 if groups == 1 else groups, scale.flatten(), shift.flatten(), 1e-3))


@pytest.mark.parametrize(("causal", "offset"), [("NONE", None), ("UPPER_LEFT", 0), ("LOWER_RIGHT", 2)])
def test_attention(causal: str, offset: int | None) -> None:
    module, net = trt(), Network()
    if not hasattr(net.to, "add_attention_v2"):
        pytest.skip("this TensorRT has no attention with these masks")
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    given = map(net.input, (q, k, v))
    layer = net.to.add_attention_v2(*given, module.AttentionNormalizationOp.SOFTMAX, getattr(module.CausalMaskKind, causal))
    mask = None if offset is None else torch.ones(5, 7, dtype=torch.bool).tril(offset)
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, mask, scale=1.0))


@pytest.mark.parametrize("added", [False, True])
def test_attention_with_a_mask(added: bool) -> None:
    module, net = trt(), Network()
    if not hasattr(net.to, "add_attention"):
        pytest.skip("this TensorRT has no attention layer")
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.randn(2, 3, 5, 7) if added else torch.randn(2, 3, 5, 7) > -1
    layer = net.to.add_attention(*map(net.input, (q, k, v)), module.AttentionNormalizationOp.SOFTMAX, False)
    layer.mask = net.input(mask)
    (found,) = net.of(layer)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, mask, scale=1.0))


def test_loops() -> None:
    """A running product of rows from both ends, its last value and all values in either order."""
    module, net = trt(), Network()
    x = torch.rand(4, 3)
    rows, loop = net.input(x), net.to.add_loop()
    loop.add_trip_limit(net.constant(torch.tensor(4, dtype=torch.int32)), module.TripLimit.COUNT)
    first, last = loop.add_iterator(rows, 0).get_output(0), loop.add_iterator(rows, 0, True).get_output(0)
    state = loop.add_recurrence(net.constant(torch.ones(3)))
    scaled = net.to.add_elementwise(first, last, module.ElementWiseOperation.SUM).get_output(0)
    after = net.to.add_elementwise(state.get_output(0), scaled, module.ElementWiseOperation.PROD).get_output(0)
    state.set_input(1, after)
    outputs = [loop.add_loop_output(state.get_output(0), module.LoopOutput.LAST_VALUE, 0)]
    for kind, axis in ((module.LoopOutput.CONCATENATE, 0), (module.LoopOutput.REVERSE, 1)):
        outputs.append(loop.add_loop_output(after, kind, axis))
        outputs[-1].set_input(1, net.constant(torch.tensor(4, dtype=torch.int32)))
    doubled = net.to.add_elementwise(outputs[0].get_output(0), outputs[0].get_output(0), module.ElementWiseOperation.SUM)
    products = (x + x.flip(0)).cumprod(0)
    found = net.of(*outputs, doubled)
    for a, b in zip(found, (products[-1], products, products.flip(0).T, 2 * products[-1]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES_16)
def test_quantized_by_channel(dtype: torch.dtype) -> None:
    net = Network()
    x, scale = IMAGE.to(dtype), torch.tensor([0.01, 0.02, 0.5, 1.0, 0.25, 0.125])
    layer = net.to.add_quantize(net.input(x), net.constant(scale.to(dtype)), trt().DataType.INT8)
    layer.axis = 1
    back = net.to.add_dequantize(layer.get_output(0), net.constant(scale.to(dtype)), getattr(trt().DataType, TYPES[dtype]))
    back.axis = 1
    (found,) = net.of(back)
    wanted = torch.fake_quantize_per_channel_affine(x.float(), scale.to(dtype).float(), torch.zeros(6).int(), 1, -128, 127)
    torch.testing.assert_close(found, wanted.to(dtype))


def test_integers_are_divided_as_in_c() -> None:
    net = Network()
    a, b = torch.tensor([7, -7, 7, -7]), torch.tensor([2, 2, -2, -2])
    x, y = net.input(a), net.input(b)
    operations = trt().ElementWiseOperation
    found = net.of(net.to.add_elementwise(x, y, operations.DIV), net.to.add_elementwise(x, y, operations.FLOOR_DIV))
    assert [t.tolist() for t in found] == [[3, -3, -3, 3], [3, -4, -4, 3]]


def test_numbers_evenly_spaced() -> None:
    net = Network()
    layer = net.to.add_fill((1,), trt().FillOperation.LINSPACE, trt().DataType.INT64)
    layer.set_input(0, net.ints(4))
    layer.set_input(1, net.constant(torch.tensor(5)))
    layer.set_input(2, net.ints(-2))
    assert net.of(layer)[0].tolist() == [5, 3, 1, -1]


@pytest.mark.parametrize(("exclusive", "reverse"), [(False, False), (True, False), (False, True), (True, True)])
def test_cumulative_sums(exclusive: bool, reverse: bool) -> None:
    net = Network()
    axis = net.constant(torch.tensor(0))
    layer = net.to.add_cumulative(net.input(torch.tensor([1.0, 2, 3])), axis, trt().CumulativeOperation.SUM, exclusive, reverse)
    wanted = {(False, False): [1, 3, 6], (True, False): [0, 1, 3], (False, True): [6, 5, 3], (True, True): [5, 3, 0]}
    assert net.of(layer)[0].tolist() == wanted[exclusive, reverse]


ODD: list[tuple[str, Callable[[Network], Any]]] = [
    ("NON_ZERO", lambda net: net.to.add_non_zero(net.input(torch.ones(2, 2)))),
    ("EINSUM", lambda net: net.to.add_einsum([net.input(torch.ones(2, 2))], "ij->ji")),
]


@pytest.mark.parametrize(("kind", "make"), ODD, ids=[kind for kind, _ in ODD])
def test_a_layer_that_is_not_known_is_named(kind: str, make: Callable[[Network], Any]) -> None:
    net = Network()
    with pytest.raises(NotImplementedError, match=f"no layer of the type {kind}"):
        net.of(make(net))
