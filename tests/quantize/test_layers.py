"""What users are told of every layer: the precision, and why it is not in eight bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from tests.quantize.nets import Gated
from torchsmith import backends
from torchsmith.cli import inspect
from torchsmith.runtime.tensors import to_bytes
from torchsmith.target import this_cpu

INT8 = {torch.float32, torch.int8}


class Net(nn.Module):
    """A convolution on pixels, two others with pooling between them, and a transposed one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.max_pool2d(torch.relu(self.pixels(x)), 2)))
        return self.last(torch.relu(self.up(x)))  # type: ignore[no-any-return]


class Trained(nn.Module):
    """Linear layers whose inputs, weights, both or neither training has rounded, as fake-quantize ops have it."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.input, self.weight, self.neither = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(nn.functional.linear(self.rounded(x).reshape(-1, 8), self.rounded(self.both.weight)))
        x = torch.relu(self.input(self.rounded(x)))
        x = torch.relu(nn.functional.linear(x, self.rounded(self.weight.weight)))
        return self.neither(x)  # type: ignore[no-any-return]

    def rounded(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.02, 0, -128, 127)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gru, self.last = nn.Linear(8, 24), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(torch.bmm(self.gru(y)[0], x.transpose(1, 2)) @ x)  # type: ignore[no-any-return]


def compiled(model: nn.Module, x: Tensor, **options: Any) -> Any:
    given = {"enabled_precisions": INT8, "min_block_size": 1, "calibrator": [x], **options}
    return torchsmith.compile(model.eval(), inputs=[x], **{name: value for name, value in given.items() if value is not None})


def told(fast: Any) -> dict[str, tuple[str, str]]:
    return {layer["name"].split("/")[-1]: (layer["precision"], layer["reason"]) for layer in torchsmith.explain(fast).layers}


def test_what_training_rounded_is_told_layer_by_layer() -> None:
    found = told(compiled(Trained(), torch.randn(4, 8), calibrator=None))
    assert found == {
        "linear": ("int8", ""),
        "linear_1": ("float32", "the model quantizes its input only"),
        "linear_2": ("float32", "the model quantizes its weight only"),
        "linear_3": ("float32", "the model does not quantize it"),
    }


class Rounded(nn.Module):
    """A linear layer whose weight and input are rounded as given."""

    def __init__(self, axis: int | None, low: int = -128, high: int = 127) -> None:
        super().__init__()
        self.layer, self.axis, self.low, self.high = nn.Linear(8, 16), axis, low, high

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if self.axis is None:
            weight = torch.fake_quantize_per_tensor_affine(weight, 0.01, 0, self.low, self.high)
        else:
            scale = torch.full((weight.shape[self.axis],), 0.01)
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, self.axis, self.low, self.high)
        return nn.functional.linear(torch.fake_quantize_per_tensor_affine(x, 0.02, 0, self.low, self.high), weight)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Rounded(None), ""),
        (Rounded(0, -8, 7), ""),
        (Rounded(1), "its weight has a scale for each number that is summed up, and not for each result"),
        (Rounded(None, -32768, 32767), "its quantize ops stay in PyTorch"),
    ],
)
def test_what_engines_have_no_products_of_is_not_called_int8(model: nn.Module, reason: str) -> None:
    assert told(compiled(model, torch.randn(4, 8), calibrator=None)).get("linear", ("", reason))[1] == reason


def test_what_is_rounded_in_pytorch_is_not_called_int8() -> None:
    fast = compiled(Trained(), torch.randn(4, 8), calibrator=None, torch_executed_ops={"aten.fake_quantize_per_tensor_affine"})
    found = {name: reason for name, (_, reason) in told(fast).items()}
    assert found.pop("linear_3") == "the model does not quantize it"
    assert set(found.values()) == {"its quantize ops stay in PyTorch"}
    assert torchsmith.explain(fast).eight_bits == "none of 4 layers in 8 bits"


def test_what_multiplies_activations_or_is_recurrent_stays_in_floats() -> None:
    found = told(compiled(Mixed(), torch.randn(2, 5, 8)))
    assert {name: reason for name, (_, reason) in found.items()} == {
        "linear": "",
        "scaled_dot_product_attention": "it multiplies activations with each other",
        "gru": "a recurrent layer; engines compute those in floats",
        "bmm": "it multiplies activations with each other",
        "matmul": "it multiplies activations with each other",
        "linear_1": "",
    }


def test_explain_and_inspect_count_them_and_packages_keep_them(tmp_path: Path) -> None:
    fast = compiled(Net(), torch.randn(2, 3, 8, 8))
    explained = torchsmith.explain(fast)
    assert explained.summary.endswith("; 0 in PyTorch; 2 of 4 layers in int8")
    (segment,) = explained.segments
    assert (segment["eight_bit_layers"], segment["layers"]) == (2, 4)
    text = str(explained)
    assert "8-bit layers" in text and "2 of 4" in text and "layers in floats" in text
    assert "up/conv_transpose2d" in text and "a transposed convolution in groups" in text
    assert "pixels/conv2d" in text and "it takes 3 channels, as of pixels" in text
    torchsmith.save(fast, tmp_path / "net.pt2")
    again = torchsmith.explain(torchsmith.load(tmp_path / "net.pt2"))
    assert again.layers == explained.layers and str(again) == text
    contents = inspect.contents_of(tmp_path / "net.pt2")
    assert inspect.eight_bits(contents) == [
        f"2 of 4 layers in int8; `torchsmith explain {tmp_path / 'net.pt2'}` says why not the others"
    ]


def test_the_float_is_the_one_that_is_computed_in() -> None:
    found = told(compiled(Net(), torch.randn(2, 3, 8, 8), enabled_precisions={torch.bfloat16, torch.int8}, backend="reference"))
    floats = {precision for precision, reason in found.values() if reason}
    assert len(floats) == 1 and floats <= {"bfloat16", "float32"}  # float32 where the CPU has no bfloat16
    half = Net().half()
    assert told(compiled(half, torch.randn(2, 3, 8, 8).half()))["conv2d"][0] == "float16"


def test_layers_that_stay_in_pytorch_say_so() -> None:
    fast = compiled(Trained(), torch.randn(4, 8), calibrator=None, torch_executed_ops={"aten.linear"})
    assert {reason for _, reason in told(fast).values()} == {"it stays in PyTorch: torch_executed_ops names it"}
    assert "none of 4 layers in 8 bits" in torchsmith.explain(fast).summary


def test_models_of_floats_are_told_as_before() -> None:
    fast = compiled(Net(), torch.randn(2, 3, 8, 8), enabled_precisions={torch.float32}, calibrator=None)
    explained = torchsmith.explain(fast)
    assert explained.layers == [] and explained.summary.endswith("0 in PyTorch")
    assert "8-bit" not in str(explained) and "layers" not in explained.segments[0]


def test_calibration_says_why_it_left_layers_in_floats() -> None:
    fast = compiled(Gated(), torch.randn(2, 8, 6, 6), skip_layers={"last"})
    assert {name: reason for name, (_, reason) in told(fast).items()} == {
        "conv2d": "a depthwise convolution of floats, which int8 does not make faster",
        "conv2d_1": "it makes a gate, which scales whole channels",
        "conv2d_2": "",
        "conv2d_3": "skip_layers names it",
    }


def test_a_budget_says_that_it_left_layers_in_floats() -> None:
    fast = compiled(Gated(), torch.randn(2, 8, 6, 6), accuracy_budget=1e-6)
    found = told(fast)
    assert found["conv2d_2"] == ("float32", "the accuracy budget has it so") and "gate" in found["conv2d_1"][1]


class Interrupted(nn.Module):
    """Layers, pooling and an op that no engine takes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.special.bessel_j0(torch.relu(self.before(x)))
        x = torch.relu(self.after(torch.max_pool2d(x, 2)))
        return self.last(torch.special.bessel_j0(x.mean((2, 3))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_reused", [False, True])
def test_engines_behind_what_stays_in_pytorch_have_their_weights_and_compute_in_int8(is_reused: bool) -> None:
    if "avx2" not in this_cpu().features:
        pytest.skip("OpenVINO has int8 kernels for x86 with AVX2 and later")
    x, model = torch.randn(2, 8, 12, 12), Interrupted()
    model.after = model.before if is_reused else model.after
    fast = compiled(model, x)
    assert torchsmith.explain(fast).eight_bits == "3 of 3 layers in int8"
    assert all(len(segment["inputs"]) == len(segment["outputs"]) == 1 for segment in torchsmith.explain(fast).segments)
    for call in fast.plan.engine_calls:
        run: Any = backends.get("openvino").load(to_bytes(fast.program.constants[call.constant]), this_cpu())
        assert all(precision in ("u8", "i8") for _, precision in run.executed()), run.executed()


def test_layers_that_will_stay_in_pytorch_are_not_rounded() -> None:
    x, model = torch.randn(2, 8, 12, 12), Interrupted().eval()
    fast = compiled(model, x, torch_executed_ops={"aten.conv2d", "aten.max_pool2d"})
    found = told(fast)
    assert found["conv2d"] == found["conv2d_1"] == ("float32", "it stays in PyTorch: torch_executed_ops names it")
    assert found["linear"] == ("int8", "")
    assert not any("quantize" in refusal["op"] for refusal in torchsmith.explain(fast).refusals)
    with pytest.warns(UserWarning, match="no layer of the model.* most often because it stays in PyTorch: its block has"):
        small = compiled(model, x, min_block_size=5)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=0)


def test_what_is_pooled_in_pytorch_is_quantized_behind_it() -> None:
    fast = compiled(Interrupted(), torch.randn(2, 8, 12, 12), torch_executed_ops={"aten.max_pool2d"})
    assert torchsmith.explain(fast).eight_bits == "3 of 3 layers in int8"
    assert len(torchsmith.explain(fast).segments) == 3  # none of a quantize op alone


@pytest.mark.parametrize("model", [Net(), Trained()], ids=lambda model: type(model).__name__)
def test_openvino_computes_what_is_told(model: nn.Module) -> None:
    if "avx2" not in this_cpu().features:
        pytest.skip("OpenVINO has int8 kernels for x86 with AVX2 and later")
    fast = (
        compiled(model, torch.randn(2, 3, 8, 8)) if isinstance(model, Net) else compiled(model, torch.randn(4, 8), calibrator=None)
    )
    (call,) = fast.plan.engine_calls
    run: Any = backends.get("openvino").load(to_bytes(fast.program.constants[call.constant]), this_cpu())
    in_int8 = [precision for _, precision in run.executed() if precision in ("u8", "i8")]
    assert len(in_int8) == sum(not reason for _, reason in told(fast).values()) > 0
