"""ScriptModules as exported programs: traced, scripted, saved and loaded, frozen; and what cannot be one."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torchsmith.capture import Captured, NotConvertible, capture
from torchsmith.capture.source import source_line
from torchsmith.errors import InvalidInput
from torchsmith.inputs import Input, resolve

BATCH = Dim("batch", min=1, max=4)


def script(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; users have it all the same
        return torch.jit.script(model.eval())


def trace(model: nn.Module, *args: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model.eval(), args)


def loaded(module: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(module, file)
        file.seek(0)
        return torch.jit.load(file)


def frozen(module: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(module)


def check(module: Any, inputs: Any, kwargs: Any = None) -> Captured:
    captured = capture(module, resolve(inputs, kwargs))
    assert captured.inputs is not None
    for field in ("traced", "min", "max"):
        args, keywords = captured.inputs.at(field)
        with torch.no_grad():
            wanted, given = module(*args, **keywords), captured.program.module()(*args, **keywords)
        assert pytree.tree_structure(given) == pytree.tree_structure(wanted)
        for g, w in zip(pytree.tree_leaves(given), pytree.tree_leaves(wanted), strict=True):
            torch.testing.assert_close(g, w)
    return captured


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.stem(x))
        y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return F.softmax(self.head(self.drop(y)), dim=-1)


@pytest.mark.parametrize(
    "kind", ["traced", "scripted", "traced and loaded", "scripted and loaded", "traced and frozen", "scripted and frozen"]
)
def test_a_network_in_every_form(kind: str) -> None:
    model = Net()
    module = script(model) if "scripted" in kind else trace(model, torch.rand(2, 3, 8, 8))
    module = loaded(module) if "loaded" in kind else frozen(module) if "frozen" in kind else module
    program = check(module, [Input((BATCH, 3, 8, 8))]).program
    ops = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert "aten.conv2d.default" in ops and not any("_convolution" in op for op in ops)
    if "frozen" not in kind:
        assert set(program.state_dict) == set(model.state_dict())
        assert program.state_dict["head.weight"].data_ptr() == model.head.weight.data_ptr() or "loaded" in kind


def test_lines_are_the_users_own() -> None:
    for module in (script(Net()), trace(Net(), torch.rand(2, 3, 8, 8))):
        program = capture(module, resolve([Input((2, 3, 8, 8))])).program
        linear = next(n for n in program.graph.nodes if "linear" in str(n.target))
        assert "test_torchscript.py" in str(source_line(linear)) and "self.head(self.drop(y))" in str(source_line(linear))


def test_the_module_is_left_as_it_was() -> None:
    module = script(Net())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    code, grads = module.code, [p.requires_grad for p in module.parameters()]
    capture(module, resolve([Input((BATCH, 3, 8, 8))]))
    assert module.code == code and [p.requires_grad for p in module.parameters()] == grads
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_sizes_that_a_trace_computes_with_stay_symbolic() -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            b, t, c = x.shape
            y = x.view(b, t, 2, c // 2).transpose(1, 2).reshape(b * 2, t, -1)
            return torch.cat([y, y.new_zeros(2 * b, 1, c // 2)], 1) + torch.arange(t + 1)[:, None] / (t - 1)

    check(trace(Heads(), torch.rand(2, 5, 6)), [Input((BATCH, Dim("t", min=3, max=9), 6))])


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    program = check(script(Tied()), [Input((2, 4))]).program
    assert program.state_dict["a.weight"].data_ptr() == program.state_dict["b.weight"].data_ptr()


# the language


class Language(nn.Module):
    """What the small programs below compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.table = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})
        self.register_buffer("scale", torch.rand(4))
        self.k = 3


class Loops(Language):
    def forward(self, x: Tensor, n: int = 2) -> Tensor:
        for i in range(n):
            x = self.fc(x) + i
        count = 0
        while count < 3:
            count += 1
            if count == 2:
                continue
            x = x * count
        for layer in self.layers:
            x = layer(x)
        for name, act in self.table.items():
            x = act(x) if name == "relu" else x + act(x)
        return x


class Lists(Language):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        parts: list[Tensor] = []
        for i, part in enumerate(x.unbind(1)):
            if i % 2 == 0:
                parts.append(part * self.k)
            else:
                parts.insert(0, part)
        last = parts.pop()
        parts += [last]
        sizes = [len(parts), 1] + [2, 3][1:]  # noqa: RUF005 - a concatenation of lists is what is tried
        sizes.extend([4])
        first, second = x.split([1, 3], dim=1)
        return torch.stack(parts, 1) + first + second.sum(1, keepdim=True), sizes[-1] + max(sizes) + sum(sizes)


class Dicts(Language):
    def forward(self, x: Tensor, more: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {"x": x}
        out["y"] = x + 1
        if "y" in out and more is not None:
            out["z"] = more["m"] * len(out)
        for key, value in out.items():
            if key != "x":
                out["x"] = out["x"] + value
        return out


class Strings(Language):
    def forward(self, x: Tensor, mode: str = "Add") -> Tensor:
        name = "mode is {}".format(mode.lower())  # noqa: UP032 - aten::format is what is tried
        if name.startswith("mode") and name == "mode is add":
            return x + len(name)
        raise ValueError("unknown " + name)


class Types(Language):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        if x.dtype == torch.float32 and not x.is_cuda and x.dim() == 2:
            y = y + x.to(torch.float64).to(x.dtype).type_as(x)
        if x.dtype != torch.int64:
            y = y + torch.arange(4, dtype=torch.int64).to(x.device)
        z = torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.ones([4], dtype=torch.half).float()
        return y.to(memory_format=torch.contiguous_format) + z + torch.full([4], 2.5) + x.new_ones([4])


class Shapes(Language):
    def forward(self, x: Tensor) -> tuple[Tensor, int, list[int]]:
        b = x.size(0)
        c = x.shape[-1]
        half = c // 2
        if c % 2 == 0 and b > 0:
            x = x.reshape(b, half, -1).flatten(1)
        n = x.numel() + int(2.7) + len(x) + min(b, 100) + int(1.5 * 2) + abs(-2)
        return x[:, 1:-1:2] ** 2 / float(c), n, x.size()


class Functions(Language):
    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(F.layer_norm(x, [4]))
        x = F.interpolate(x[:, None], scale_factor=2.0, mode="linear", align_corners=False)
        x = F.pad(F.max_pool1d(x, 2), [1, 1], mode="replicate")
        x = F.dropout(F.hardswish(x), 0.5, self.training)
        mask = (x > 0.5) & ~(x > 0.9)
        return torch.where(mask, x, torch.zeros_like(x)).masked_fill(mask, 2.0).clamp(min=0.0, max=5.0)


class Methods(Language):
    def scaled(self, x: Tensor, by: int | None = None) -> Tensor:
        return x * self.scale * (1 if by is None else by)

    def pair(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        return x, (self.scaled(x, by=self.k), 7)

    def forward(self, x: Tensor) -> Tensor:
        a, (b, n) = self.pair(x)
        assert b.shape == a.shape, "same"
        y = x + a
        y[:, 0] = n
        y += b
        return y


@pytest.mark.parametrize(
    ("model", "inputs", "kwargs"),
    [
        (Loops, [Input((BATCH, 4))], None),
        (Loops, [Input((BATCH, 4))], {"n": 4}),
        (Lists, [Input((BATCH, 4))], None),
        (Dicts, [Input((BATCH, 4))], None),
        (Dicts, [Input((BATCH, 4)), {"m": Input((BATCH, 4))}], None),
        (Strings, [Input((2, 4))], None),
        (Types, [Input((BATCH, 4))], None),
        (Shapes, [Input((BATCH, 4))], None),
        (Functions, [Input((BATCH, 4))], None),
        (Methods, [Input((2, 4))], None),
    ],
)
def test_the_language(model: type[Language], inputs: Any, kwargs: Any) -> None:
    module = script(model())
    check(module, inputs, kwargs)
    check(loaded(module), inputs, kwargs)
    check(frozen(module), inputs, kwargs)


# refusals


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.h = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.fc(x) + self.h
        return self.h


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        self.calls = 3
        return y


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x + 1
        return x - 1


@pytest.mark.parametrize(
    ("model", "kind", "why"),
    [
        (Stateful, NotConvertible, "Stateful reads self.h, which it changes from call to call"),
        (Counting, NotConvertible, "Counting keeps state in self.calls from call to call"),
        (
            Branching,
            NotConvertible,
            "Branching cannot be exported: its control flow.* depends on the values of a tensor .*if bool\(x.sum\(\) > 0\)",
        ),
    ],
)
def test_state_and_control_flow_on_values_are_refused(model: type[nn.Module], kind: type[NotConvertible], why: str) -> None:
    with pytest.raises(kind, match=why):
        capture(script(model()), resolve([Input((4,))]))


def test_what_was_made_for_another_engine_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.optimize_for_inference(trace(nn.Conv2d(3, 8, 3), torch.rand(1, 3, 8, 8)))
    with pytest.raises(NotConvertible, match=r"as it was before torch.jit.optimize_for_inference"):
        capture(module, resolve([Input((1, 3, 8, 8))]))


@pytest.mark.parametrize(
    ("inputs", "kwargs", "why"),
    [
        ([], None, r"Strings.forward\(x, mode='Add'\) does not take these inputs: missing a required argument: 'x'"),
        ([Input((2, 4)), "sub"], None, "Strings fails on these inputs.*unknown mode is sub"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, kwargs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        capture(script(Strings()), resolve(inputs, kwargs))


def test_a_traced_model_from_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv2_100", num_classes=10).eval()
    module = loaded(trace(model, torch.rand(1, 3, 64, 64)))
    captured = capture(module, resolve([Input((BATCH, 3, 64, 64))]))
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(captured.program.module()(x), model(x))
