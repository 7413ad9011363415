"""What may be captured, that it is the same function, and that the user's model stays as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torchsmith.capture import Captured, capture
from torchsmith.config import CaptureConfig
from torchsmith.errors import CaptureError, InvalidInput
from torchsmith.inputs import Input, resolve


def check(
    model: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None, fields: tuple[str, ...] = ("traced",)
) -> Captured:
    """Capture, and compare the program with the model on the examples of each field."""
    captured = capture(model, resolve(inputs, kwargs))
    assert captured.inputs is not None
    for field in fields:
        args, keywords = captured.inputs.at(field)
        with torch.no_grad():
            given, wanted = captured.program.module()(*args, **keywords), model(*args, **keywords)
        assert pytree.tree_structure(given) == pytree.tree_structure(wanted)
        for g, w in zip(pytree.tree_leaves(given), pytree.tree_leaves(wanted), strict=True):
            assert torch.equal(g, w) if isinstance(w, Tensor) else g == w
    return captured


class Everything(nn.Module):
    """Tied weights, buffers of both kinds, a plain tensor, a tensor made on the way, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("kept", torch.rand(4))
        self.register_buffer("passing", torch.rand(4), persistent=False)
        self.plain = torch.rand(4)
        self.cache: dict[str, Tensor] = {}
        self.calls = 0
        self.a.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls += 1
        if "k" not in self.cache:
            self.cache["k"] = torch.arange(4.0)
        y = self.norm(self.b(self.a(x))) + self.kept + self.passing * self.plain + self.cache["k"]
        return {"y": y + torch.tensor([1.0, 2.0, 3.0, 4.0]), "both": (x, [y.sum(1)]), "name": "n"}


def test_parameters_buffers_constants_and_hooks() -> None:
    program = check(Everything().eval(), [Input((2, 4))]).program
    assert set(program.state_dict) >= {"a.weight", "b.bias", "kept"}
    assert program.state_dict["a.weight"].data_ptr() == program.state_dict["b.weight"].data_ptr(), "tied weights are one tensor"


def test_the_model_is_left_as_it_was() -> None:
    model = Everything().eval()
    model.train(False).requires_grad_(True)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    pointers = [p.data_ptr() for p in model.parameters()]
    random = torch.get_rng_state()
    captured = capture(model, resolve([Input((2, 4))]))
    assert model.calls == 0 and model.cache == {}, "tracing ran the user's own object"
    assert [m.training for m in model.modules()] == modes and all(p.requires_grad for p in model.parameters())
    assert [p.data_ptr() for p in model.parameters()] == pointers and len(model.a._forward_hooks) == 1
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert torch.equal(random, torch.get_rng_state()) and torch.is_grad_enabled()
    assert captured.program.state_dict["a.weight"].data_ptr() == model.a.weight.data_ptr(), "weights are shared, not copied"


def test_buffers_that_the_model_writes_to_are_left_as_they_were() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.count += x.sum(0)
            return x + self.count

    model = Counts().eval()
    capture(model, resolve([Input((Dim("batch", min=1, max=4), 4))]))
    assert torch.equal(model.count, torch.zeros(4))


def test_a_model_that_cannot_be_copied_is_captured_all_the_same() -> None:
    import threading

    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model.lock = threading.Lock()
    check(model, [Input((2, 4))])


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    check(model, [Input((2, 4))])


def test_gradients_and_modes_leave_no_trace() -> None:
    class Guarded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                y = x + 1
            with torch.no_grad():
                return y.detach() * 2

    program = check(Guarded(), [torch.rand(2, requires_grad=True)]).program
    assert not [n for n in program.graph.nodes if "grad" in str(n.target) or "hop" in str(n.target)]


def test_keywords_defaults_and_constants() -> None:
    class Options(nn.Module):
        def forward(self, x: Tensor, *rest: Tensor, scale: float = 1.0, mode: str = "add", **more: Tensor) -> Tensor:
            y = x * scale
            for r in [*rest, *more.values()]:
                y = y + r if mode == "add" else y - r
            return y

    check(Options(), [Input((2,))])
    captured = check(Options(), [Input((2,)), Input((2,))], {"mode": "sub", "scale": 3, "late": Input((2,))})
    assert captured.signature is not None and list(captured.signature.parameters) == ["x", "rest", "scale", "mode", "more"]
    assert captured.device == torch.device("cpu")


@dataclasses.dataclass
class Point:
    x: Tensor
    y: Tensor


torch.export.register_dataclass(Point)


def test_the_users_own_classes_go_in_and_out() -> None:
    class Swap(nn.Module):
        def forward(self, p: Point) -> Point:
            return Point(p.y, p.x * 2)

    batch = Dim("batch", min=1, max=4)
    check(Swap(), [Point(Input((batch, 2)), Input((batch, 2)))], fields=("traced", "min", "max"))


def test_example_tensors_are_inputs() -> None:
    x = torch.rand(2, 4)
    captured = check(nn.Linear(4, 4), [x])
    assert captured.inputs is not None and captured.inputs.args[0] is x


def test_channels_last_examples() -> None:
    check(nn.Conv2d(3, 4, 3).eval(), [Input((1, 3, 8, 8), format=torch.channels_last)])


def test_strict_capture() -> None:
    captured = capture(nn.Sequential(nn.Linear(4, 4)).eval(), resolve([Input((2, 4))]), CaptureConfig(strict=True))
    assert captured.program.module()(torch.rand(2, 4)).shape == (2, 4)


def test_a_graph_module_and_a_wrapped_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    check(torch.fx.symbolic_trace(model), [Input((2, 4))])
    check(torch.export.export(model, (torch.rand(2, 4),)).module(), [Input((2, 4))])
    capture(torch.compile(model), resolve([Input((2, 4))]))


def test_a_scripted_child_is_seen_through() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()), nn.Linear(4, 2)).eval()
    program = check(model, [Input((2, 4))]).program
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == [
        "aten.linear.default",
        "aten.relu.default",
        "aten.linear.default",
    ]
    assert isinstance(model[0], torch.jit.ScriptModule), "the user's model has another child now"


@pytest.mark.parametrize("given", [3, "model.pt", lambda x: x, None])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"takes an nn.Module, ExportedProgram, GraphModule or ScriptModule, and got a"):
        capture(given, resolve([Input((2,))]))


# exported programs


def test_an_exported_program_is_taken_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    program = torch.export.export(model, (torch.rand(2, 4),), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    captured = capture(program)
    assert captured.program is program and captured.inputs is None
    assert captured.program.module()(torch.rand(3, 4)).shape == (3, 4)


def test_inputs_that_an_exported_program_takes() -> None:
    batch = Dim("batch", min=2, max=8)
    program = torch.export.export(nn.Linear(4, 4), (torch.rand(2, 4),), dynamic_shapes=({0: batch},))
    captured = capture(program, resolve([Input((batch, 4))]))
    assert captured.inputs is not None and captured.inputs.is_dynamic


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([Input((2, 5))], "was exported with size 4 in dimension 1, and the call has 5"),
        ([Input((9, 4))], r"the size 9 is outside of 2\.\.8"),
        ([Input(min_shape=(1, 4), max_shape=(8, 4))], r"the size 1 is outside of 2\.\.8"),
        ([Input((2, 4), dtype=torch.half)], "was exported as torch.float32, and the call has torch.float16"),
        ([Input((2, 4)), 1], "it takes 1 inputs"),
        ([Input((2, 4, 4))], "was exported with 2 dimensions"),
    ],
)
def test_inputs_that_an_exported_program_does_not_take(inputs: Any, why: str) -> None:
    program = torch.export.export(nn.Linear(4, 4), (torch.rand(2, 4),), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    with pytest.raises(InvalidInput, match=why):
        capture(program, resolve(inputs))


# training mode


class Training(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # the line to be named


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Dropout(0.5), r"aten.dropout.default drops values at random \(.*test_export.py:\d+  return self.layer\(x\)"),
        (nn.BatchNorm1d(4), "aten.batch_norm.default updates its running statistics"),
        (nn.RReLU(), "aten.rrelu.default drops values at random"),
        (nn.AlphaDropout(0.5), "aten.alpha_dropout.default drops values at random"),
    ],
)
def test_a_model_in_training_mode_is_refused_by_the_layer_that_minds(layer: nn.Module, why: str) -> None:
    with pytest.raises(CaptureError, match=rf"the model is in training mode: {why}.*; call model.eval\(\) before compiling"):
        capture(Training(layer).train(), resolve([Input((2, 4))]))
    check(Training(layer).eval(), [Input((2, 4))])


def test_training_mode_that_changes_nothing_is_no_mistake() -> None:
    check(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).train(), [Input((2, 4))])


def test_dropout_on_purpose_is_no_mistake() -> None:
    class Sampled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    assert capture(Sampled().eval(), resolve([Input((2, 4))])).program


def test_a_program_exported_in_training_mode_is_refused() -> None:
    program = torch.export.export(Training(nn.BatchNorm1d(4)).train(), (torch.rand(2, 4),))
    with pytest.raises(CaptureError, match=r"training mode.*or before exporting"):
        capture(program)


# real models


def test_a_transformer_with_keywords_and_its_own_output_class() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    model = transformers.BertModel(config).eval()
    tokens = {"min_shape": (1, 1), "max_shape": (4, 16), "dtype": torch.int64}
    kwargs = {"input_ids": Input(**tokens), "attention_mask": Input(**tokens)}
    captured = check(model, [], kwargs, fields=("traced", "min", "max"))
    assert type(captured.program.module()(**captured.inputs.kwargs)) is type(model(**captured.inputs.kwargs))  # type: ignore[union-attr]
    assert sorted((int(r.lower), int(r.upper)) for r in captured.program.range_constraints.values()) == [(1, 4), (1, 16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_examples_are_made_where_the_model_is() -> None:
    captured = capture(nn.Linear(4, 4).cuda(), resolve([Input((2, 4))]))
    assert captured.inputs is not None and captured.inputs.args[0].is_cuda
