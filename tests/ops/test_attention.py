import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ops.attention import Attention
from torchsmith.testing.op_case import OpCase, rand


def tensors(batch: tuple = (2, 3), length: int = 5, keys: int = 7, features: int = 4, out: int = 4) -> tuple:
    return rand(*batch, length, features), rand(*batch, keys, features), rand(*batch, keys, out)


@pytest.mark.parametrize(
    "three",
    [
        tensors(),
        tensors(length=1, keys=1, features=1, out=1),
        tensors(features=8, out=3),
        tensors(batch=()),
        tensors(batch=(3,)),
        tensors(batch=(2, 1, 3)),
        (rand(2, 3, 5, 4), rand(1, 3, 7, 4), rand(1, 1, 7, 4)),
    ],
    ids=lambda t: str(tuple(t[0].shape) + tuple(t[1].shape)),
)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(three: tuple, causal: bool) -> None:
    OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), *three).accepted()


def test_scale() -> None:
    OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), *tensors()).accepted()
    OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0), *tensors()).accepted()


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (5, 7), (2, 1, 1, 7), (1, 1, 5, 7), (3, 5, 1)], ids=str)
def test_masks(shape: tuple) -> None:
    attend = F.scaled_dot_product_attention
    OpCase(lambda q, k, v, m: attend(q, k, v, m), *tensors(), rand(*shape)).accepted()
    OpCase(lambda q, k, v, m: attend(q, k, v, m), *tensors(), rand(*shape) > -1).accepted()


@pytest.mark.parametrize("size", [4, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_as_many_heads_as_tokens(size: int, masked: bool) -> None:
    """What puts the heads beside each other again then keeps the shape."""
    mask = rand(1, 1, size, size) > -1 if masked else None

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.relu(q) @ k.mT
        return ((scores if mask is None else scores.masked_fill(~mask, -100)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    three = tensors((2, size), size, size, 16, 16)
    OpCase(fused, *three).accepted()
    OpCase(apart, *three).accepted()


def test_rows_that_are_masked_whole_give_zeros() -> None:
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, 0, 2], mask[1, 0, :, 3:] = False, False
    attend = F.scaled_dot_product_attention
    OpCase(lambda q, k, v, m: attend(q, k, v, m), *tensors(), mask).accepted()
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    OpCase(lambda q, k, v, m: attend(q, k, v, m), *tensors(), added).accepted()


def test_rows_that_are_masked_with_the_least_number_do_not() -> None:
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, 0, 2] = mask[1, 0, :, 3:] = torch.finfo(torch.float32).min
    OpCase(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), *tensors(), mask, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_heads_that_share_keys(heads: int) -> None:
    three = rand(2, 6, 5, 4), rand(2, heads, 7, 4), rand(2, heads, 7, 4)
    OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), *three).accepted()


@pytest.mark.parametrize("causal", [False, True])
def test_the_core_name_gives_logarithms_of_sums_too(causal: bool) -> None:
    function = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    three = tensors(keys=5)
    OpCase(lambda q, k, v: function(q, k, v, 0.0, causal)[0], *three).accepted()
    OpCase(lambda q, k, v: function(q, k, v, 0.0, causal)[1], *three, dtypes=(torch.float32,)).accepted()
    if not causal:
        OpCase(
            lambda q, k, v, m: function(q, k, v, attn_mask=m, scale=0.7)[1], *three, rand(5, 5), dtypes=(torch.float32,)
        ).accepted()


def test_sizes_that_vary() -> None:
    attend = F.scaled_dot_product_attention
    q, k, v = tensors(length=7)
    batch, length = [(i, 0) for i in range(3)], [(i, 2) for i in range(3)]
    OpCase(lambda q, k, v: attend(q, k, v), q, k, v, dynamic=batch).accepted()
    OpCase(lambda q, k, v: attend(q, k, v, is_causal=True), q, k, v, dynamic=length, least=2).accepted()
    OpCase(lambda q, k, v, m: attend(q, k, v, m), q, k, v, rand(7, 7) > -1, dynamic=[*length, (3, 0), (3, 1)], least=2).accepted()


def test_multihead_attention() -> None:
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    names = {str(n.target) for n in torch.export.export(module, (rand(2, 5, 8),) * 3).graph.nodes if n.op == "call_function"}
    assert "aten._native_multi_head_attention.default" not in names


def test_no_elements() -> None:
    q, k, v = tensors(keys=1)
    case = OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:]), q, k, v)
    case.refused(why="tensors without elements", on="openvino")


def test_dropout_is_refused() -> None:
    OpCase(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), *tensors()).refused(why="dropout_p=0.5")


def test_mixed_dtypes_are_refused() -> None:
    q, k, v = tensors()
    case = OpCase(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), q.bfloat16(), k.bfloat16(), v.bfloat16(), rand(5, 7)
    )
    case.refused(why="it takes bool or torch.bfloat16")


@pytest.mark.parametrize("mask", [None, "bool", "added"])
@pytest.mark.parametrize("causal", [False, True])
def test_probabilities_of_eight_bits(mask: str | None, causal: bool) -> None:
    q, k, v = tensors(length=7)
    hidden = torch.zeros(2, 1, 7, 7, dtype=torch.bool)
    hidden[0, :, :, 3:] = hidden[1, 0, 2] = True
    given = [] if mask is None else [~hidden] if mask == "bool" else [torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)]
    plain = Attention(0.4, causal)
    rounded = Attention(0.4, causal, torch.float8_e4m3fn)
    types = [type_of(t) for t in (q, k, v, *given)]
    assert rounded.infer(*types) == plain.infer(*types)
    scores = q.double() @ k.double().mT * 0.4
    seen = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
    seen = seen & ~hidden if mask else seen.expand(2, 1, 7, 7)
    p = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)
    p = (p * 448).float().to(torch.float8_e4m3fn).double() / 448
    y = rounded.reference(q, k, v, *given)
    assert y.dtype == q.dtype
    torch.testing.assert_close(y.double(), p @ v.double(), rtol=1e-5, atol=1e-5)
    if mask:
        assert not y[1, :, 2].any()
    if not causal:
        torch.testing.assert_close(y, plain.reference(q, k, v, *given), rtol=0.1, atol=0.1)


def test_probabilities_have_eight_bits_or_all() -> None:
    with pytest.raises(Unsupported, match=r"rounded to torch\.int8; engines round to float8_e4m3fn"):
        Attention(1.0, False, torch.int8).infer(*map(type_of, tensors()))


def test_attention_of_fp8_rounds_its_probabilities_too() -> None:
    scale = torch.tensor(0.01)
    round_ = torch.ops.torchsmith.fake_quantize_float8

    def network(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(round_(q, scale), round_(k, scale).transpose(1, 2).transpose(1, 2), round_(v, scale))

    def partly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(round_(q, scale), round_(k, scale), v)

    for function, wanted in ((network, torch.float8_e4m3fn), (partly, None)):
        graph = OpCase(function, *tensors()).graph()
        (op,) = (node.op for node in graph.nodes if isinstance(node.op, Attention))
        assert op.probabilities == wanted
        torch.testing.assert_close(interpret(graph, tensors())[0], function(*tensors()), rtol=0.1, atol=0.1)
    OpCase(network, *tensors()).refused("fp8|float8", on="openvino")
