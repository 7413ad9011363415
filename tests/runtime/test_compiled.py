"""A compiled module is called like the original, and says in a sentence what does not fit."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tests.runtime.toy import BACKEND, hybrid, nodes_of, segment_of
from torchsmith.errors import CaptureError, EngineMismatch, InvalidInput, TorchsmithError
from torchsmith.partition.splice import splice
from torchsmith.runtime import engines
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.verify import verify


def compiled(
    module: nn.Module, *args: Any, kwargs: dict[str, Any] | None = None, signed: bool = True, **options: Any
) -> CompiledModule:
    """signed: with the original's signature, as `compile` gives it."""
    program = hybrid(module, args, kwargs, **options)
    fast = CompiledModule(program, {}, inspect.signature(module.forward) if signed else None)
    verify(fast.plan)
    return fast


def same(given: Any, wanted: Any) -> None:
    assert type(given) is type(wanted)
    torch.testing.assert_close(given, wanted)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


BATCH = ({0: Dim("batch", min=1, max=16)},)


def test_one_engine() -> None:
    module = Mlp()
    fast = compiled(module, torch.randn(2, 4), dynamic_shapes=BATCH)
    for batch in (1, 2, 16):
        x = torch.randn(batch, 4)
        same(fast(x), module(x).detach())
    assert repr(fast) == "CompiledModule(1 toy engine, 0 ops in PyTorch, on cpu)"
    assert not list(fast.parameters()) and not fast.state_dict()


def test_hooks_are_called() -> None:
    fast, x = compiled(Mlp(), torch.randn(2, 4)), torch.randn(2, 4)
    wanted, seen = fast(x), list[str]()
    own = [
        fast.register_forward_pre_hook(lambda module, args: seen.append("before")),
        fast.register_forward_hook(lambda module, args, out: -out),
    ]
    same(fast(x), -wanted)
    own.pop().remove()
    same(fast(x), wanted)
    own.pop().remove()
    every = [
        nn.modules.module.register_module_forward_pre_hook(lambda module, args: seen.append("before all")),
        nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append("behind all")),
    ]
    try:
        same(fast(x), wanted)
        every.pop(0).remove()
        same(fast(x), wanted)
    finally:
        for hook in every:
            hook.remove()
    same(fast(x), wanted)
    assert seen == ["before", "before", "before all", "behind all", "behind all"]


def test_engines_and_pytorch_in_turns() -> None:
    module = Mlp()
    fast = compiled(module, torch.randn(2, 4), engines=(("linear",), ("linear_1",)), dynamic_shapes=BATCH)
    x = torch.randn(5, 4)
    same(fast(x), module(x).detach())
    assert repr(fast) == "CompiledModule(2 toy engines, 1 ops in PyTorch, on cpu)"


def test_no_engine_at_all() -> None:
    module = Mlp()
    fast = CompiledModule(export(module.eval(), (torch.randn(2, 4),)), {})
    x = torch.randn(2, 4)
    same(fast(x), module(x).detach())
    assert not fast(x).requires_grad
    assert sorted(fast.state_dict()) == sorted(module.state_dict())
    assert repr(fast) == "CompiledModule(no engine, 3 ops in PyTorch, on cpu)"


def test_inputs_that_require_gradients() -> None:
    fast = compiled(Mlp(), torch.randn(2, 4), engines=(("linear",),))
    assert not fast(torch.randn(2, 4, requires_grad=True)).requires_grad


class Named(nn.Module):
    def forward(
        self, x: Tensor, y: Tensor | None = None, *more: Tensor, scale: Tensor | None = None, twice: bool = False, **rest: Tensor
    ) -> Tensor:
        out = x if y is None else x + y
        for other in (*more, *rest.values()):
            out = out * other
        out = out if scale is None else out * scale
        return out * 2 if twice else torch.relu(out)


X, Y, Z = torch.rand(3) + 1, torch.rand(3) + 2, torch.rand(3) + 3


@pytest.mark.parametrize(
    ("args", "kwargs", "calls"),
    [
        ((X,), {}, [((X,), {}), ((), {"x": X}), ((X, None), {}), ((X,), {"twice": False, "scale": None})]),
        ((X, Y), {}, [((X, Y), {}), ((X,), {"y": Y}), ((), {"y": Y, "x": X})]),
        ((X,), {"y": Y}, [((X, Y), {}), ((X,), {"y": Y}), ((), {"y": Y, "x": X})]),
        ((), {"y": Y, "x": X}, [((X, Y), {}), ((), {"x": X, "y": Y})]),
        ((X, Y, Z), {}, [((X, Y, Z), {})]),
        ((X,), {"scale": Y, "twice": True}, [((X,), {"twice": True, "scale": Y}), ((), {"scale": Y, "x": X, "twice": True})]),
        ((X,), {"extra": Y}, [((X,), {"extra": Y}), ((X, None), {"extra": Y})]),
        ((X, None), {}, [((X, None), {}), ((X,), {}), ((X,), {"y": None})]),
    ],
)
def test_every_way_to_call_the_original(args: Any, kwargs: Any, calls: Any) -> None:
    module = Named()
    fast = compiled(module, *args, kwargs=kwargs)
    wanted = module(*args, **kwargs)
    for a, k in calls:
        same(fast(*a, **k), wanted)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda f: f(), "missing a required argument: 'x'; the model takes "),
        (lambda f: f(X, scale=Y, nobody=Z), "argument 'nobody' was not given when the model was compiled"),
        (lambda f: f(X, Y, scale=Y), "argument 'y' was left out when the model was compiled, so its default None is built in"),
        (lambda f: f(X), "argument 'scale' is None; it takes a torch.float32 tensor of shape .3,. on cpu"),
        (lambda f: f(X, scale=Y, twice=True), "argument 'twice' is True; the model was compiled with False, and that is built in"),
        (lambda f: f(X, scale=Y, twice=0), "argument 'twice' is 0; the model was compiled with False"),
        (lambda f: f(X, None, Z, scale=Y), r"\*more has 1 values; the model was compiled with 0"),
    ],
)
def test_calls_that_do_not_fit_the_signature(call: Any, sentence: str) -> None:
    fast = compiled(Named(), X, kwargs={"scale": Y, "twice": False})
    same(fast(X, scale=Y), Named()(X, scale=Y))
    with pytest.raises(InvalidInput, match=sentence):
        call(fast)


def test_without_a_signature_the_program_names_the_arguments() -> None:
    fast = compiled(Named(), X, kwargs={"scale": Y, "twice": True}, signed=False)
    wanted = Named()(X, scale=Y, twice=True)
    for given in (fast(X, scale=Y, twice=True), fast(x=X, twice=True, scale=Y), fast(X, scale=Y)):
        same(given, wanted)


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Boxes:
    corners: Tensor
    scores: Tensor


torch.export.register_dataclass(Boxes, serialized_type_name="tests.Boxes")


class Nested(nn.Module):
    def forward(self, batch: dict[str, Any], rest: tuple[Tensor, list[Tensor]]) -> Any:
        ids, mask = batch["ids"], batch["mask"]["value"]
        out = torch.relu(ids * mask)
        return {
            "tuple": (out, [rest[0] + out, None]),
            "pair": Pair(out, 3),
            "ordered": OrderedDict([("z", out), ("a", rest[1][0])]),
            "boxes": Boxes(out, mask),
            "flag": True,
            7: "text",
        }


def nest() -> tuple[dict[str, Any], tuple[Tensor, list[Tensor]]]:
    return {"ids": torch.randn(2), "mask": {"value": torch.randn(2)}}, (torch.randn(2), [torch.randn(2)])


def test_containers_come_back_as_the_original_gives_them() -> None:
    module, fast = Nested(), compiled(Nested(), *nest(), engines=(("mul", "relu"),))
    batch, rest = nest()
    given, wanted = fast(batch, rest), module(batch, rest)
    assert list(given) == list(wanted) and [type(v) for v in given.values()] == [type(v) for v in wanted.values()]
    for key in ("tuple", "pair", "ordered"):
        torch.testing.assert_close(given[key], wanted[key])
    torch.testing.assert_close(vars(given["boxes"]), vars(wanted["boxes"]))
    swapped = {"mask": batch["mask"], "ids": batch["ids"]}
    torch.testing.assert_close(fast(rest=rest, batch=swapped)["pair"], wanted["pair"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b, r: b.pop("ids"), "batch has no 'ids'; it takes the keys 'ids', 'mask'"),
        (lambda b, r: b.update(more=1), "batch has 'more' too many"),
        (lambda b, r: b["mask"].update(value=3), r"argument \"batch\['mask'\]\['value'\]\" is 3; it takes a torch.float32 tensor"),
        (lambda b, r: b.update(mask=[1]), r"batch\['mask'\] is a list of 1; it takes a dict with the keys 'value'"),
        (lambda b, r: r[1].append(1), r"rest\[1\] is a list of 2; it takes a list of 1"),
        (
            lambda b, r: r[1].__setitem__(0, torch.zeros(3)),
            r"argument 'rest\[1\]\[0\]' has shape \(3,\); it takes a torch.float32 tensor of shape \(2,\)",
        ),
    ],
)
def test_containers_that_do_not_fit(change: Any, sentence: str) -> None:
    fast = compiled(Nested(), *nest(), engines=(("mul", "relu"),))
    batch, rest = nest()
    change(batch, rest)
    with pytest.raises(InvalidInput, match=sentence):
        fast(batch, rest)


def test_registered_classes_as_inputs() -> None:
    class Area(nn.Module):
        def forward(self, boxes: Boxes, pair: Pair) -> Boxes:
            return Boxes(torch.relu(boxes.corners), boxes.scores + pair.left)

    def args() -> tuple[Boxes, Pair]:
        return Boxes(torch.randn(2), torch.randn(2)), Pair(torch.randn(2), torch.randn(2))

    fast = compiled(Area(), *args())
    boxes, pair = args()
    torch.testing.assert_close(vars(fast(boxes, pair)), vars(Area()(boxes, pair)))
    with pytest.raises(InvalidInput, match="boxes is a dict; it takes a Boxes"):
        fast({"corners": 1}, pair)
    with pytest.raises(InvalidInput, match="pair is a tuple of 2; it takes a namedtuple, as the model was compiled with"):
        fast(boxes, tuple(pair))


class Shapes(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a).sum(1) + b[::2]


RANGES = {"a": {0: Dim("rows", min=2, max=8)}, "b": {0: 2 * Dim("rows", min=2, max=8)}}


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (torch.ones(9, 3), torch.ones(18), r"has shape \(9, 3\): dimension 0 is 9, out of its range 2..8; it takes \(s"),
        (torch.ones(1, 3), torch.ones(2), "dimension 0 is 1, out of its range 2..8"),
        (torch.ones(4, 3), torch.ones(9), r"'b' has shape \(9,\): dimension 0 is 9, and must be 2\*s\w+ = 8 as elsewhere"),
        (torch.ones(4, 2), torch.ones(8), r"'a' has shape \(4, 2\); it takes a torch.float32 tensor of shape \(s\w+, 3\) with"),
        (torch.ones(4), torch.ones(8), r"argument 'a' has shape \(4,\)"),
        (torch.ones(4, 3).double(), torch.ones(8), r"'a' has dtype torch.float64; .*; convert it with .to\(torch.float32\)"),
        (torch.ones(4, 3).to_sparse(), torch.ones(8), r"argument 'a' has layout torch.sparse_coo; .* convert it with .to_dense"),
        (torch.ones(4, 3, device="meta"), torch.ones(8), r"argument 'a' is on meta; .* move it with .to\('cpu'\)"),
        (None, torch.ones(8), "argument 'a' is None; it takes a torch.float32 tensor"),
        ([1.0], torch.ones(8), "argument 'a' is a list; it takes a torch.float32 tensor"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(a: Any, b: Tensor, sentence: str) -> None:
    fast = compiled(Shapes(), torch.ones(4, 3), torch.ones(8), dynamic_shapes=RANGES)
    with pytest.raises(InvalidInput, match=sentence):
        fast(a, b)


def test_sizes_that_fit() -> None:
    fast = compiled(Shapes(), torch.ones(4, 3), torch.ones(8), dynamic_shapes=RANGES)
    for rows in (2, 5, 8):
        a, b = torch.randn(rows, 3), torch.randn(2 * rows)
        same(fast(a, b), Shapes()(a, b))


def test_a_symbol_that_stands_nowhere_alone() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)[: x.shape[0] // 2]

    program = export(Halves(), (torch.ones(6),), dynamic_shapes=({0: 2 * Dim("half", min=2, max=5)},))
    fast = CompiledModule(program, {})
    for size in (4, 10):
        assert fast(torch.ones(size)).shape == (size // 2,)
    with pytest.raises(InvalidInput, match=r"dimension 0 is 7, which is not 2\*s\w+ for a whole s\w+"):
        fast(torch.ones(7))
    with pytest.raises(InvalidInput, match=r"dimension 0 is 12, out of its range 4..10"):
        fast(torch.ones(12))


def test_a_size_that_must_be_divisible() -> None:
    class Fold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).reshape(x.shape[0] // 4, 4)

    program = export(Fold(), (torch.ones(8),), dynamic_shapes=({0: Dim.AUTO},))
    fast = CompiledModule(program, {})
    same(fast(torch.ones(12)), torch.ones(3, 4))
    with pytest.raises(InvalidInput, match=r"(?s)must be equal to .* for this model, and s\w+ is 10 \(dimension 0 of 'x'\)"):
        fast(torch.ones(10))


def test_a_size_as_an_input() -> None:
    class Repeat(nn.Module):
        def forward(self, x: Tensor, times: int, mode: str = "up") -> Tensor:
            return torch.relu(x) * times if mode == "up" else x

    program = export(Repeat(), (torch.ones(3), 5), dynamic_shapes={"x": None, "times": Dim.DYNAMIC})
    fast = CompiledModule(program, {}, inspect.signature(Repeat.forward.__get__(Repeat())))
    same(fast(torch.ones(3), 7), torch.full((3,), 7.0))
    with pytest.raises(InvalidInput, match="argument 'times' is 'x'; it takes an int"):
        fast(torch.ones(3), "x")


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("table", torch.ones(2))
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count.view(2)[:1].add_(1)
        return torch.relu(x) + self.count * self.table * self.weight


@pytest.mark.parametrize("functional", [False, True])
def test_a_buffer_that_the_model_writes_to_is_the_modules_own(functional: bool) -> None:
    module = Counter().eval()
    program = export(module, (torch.zeros(2),))
    program = program.run_decompositions({}) if functional else program
    fast = CompiledModule(splice(program, [segment_of(program, nodes_of(program, "relu"))]), {})
    x = torch.zeros(2)
    assert [fast(x).tolist() for _ in range(3)] == [[1, 0], [2, 0], [3, 0]]
    assert module.count.tolist() == program.state_dict["count"].tolist() == [0, 0]
    twin = copy.deepcopy(fast)
    assert twin(x).tolist() == [4, 0] and twin(x).tolist() == [5, 0] and fast(x).tolist() == [4, 0]
    assert fast.state_dict()["count"].tolist() == [4, 0] == fast.program.state_dict["count"].tolist()
    assert twin.program.state_dict["count"].tolist() == [5, 0]
    assert fast.tensors["weight"].data_ptr() == module.weight.data_ptr()  # what it only reads is not copied


def test_an_input_that_the_model_writes_to() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return torch.relu(x) * 2

    for program in (export(Writes(), (torch.zeros(2),)), export(Writes(), (torch.zeros(2),)).run_decompositions({})):
        x = torch.zeros(2)
        fast = CompiledModule(program, {})
        assert fast(x).tolist() == [2, 2] and x.tolist() == [1, 1]
        assert fast(x).tolist() == [4, 4] and x.tolist() == [2, 2]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda t: torch.cond(t.sum() > 9, lambda u: u - 9, lambda u: u + 1, (t,)), lambda t: t * 2, (x,)
        )


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch._higher_order_ops.while_loop(lambda i, t: i < x.sum(), lambda i, t: (i + 1, t * 2), (torch.tensor(0), x))[1]


class Regions(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = x.reshape(1, -1) @ x.reshape(-1, 1)
        with torch.no_grad():
            z = torch.relu(x)
        return z, y


class Map(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch._higher_order_ops.map(lambda row, y: row * 2 + y, x.reshape(3, 1).clone(), x)


@pytest.mark.parametrize("module", [Branches(), Loop(), Regions(), Map()], ids=lambda m: type(m).__name__)
def test_control_flow(module: nn.Module) -> None:
    program = export(module, (torch.ones(3),))
    fast = CompiledModule(splice(program, []), {})
    for x in (torch.ones(3), -torch.ones(3), torch.ones(3) * 5):
        torch.testing.assert_close(fast(x), module(x))
        assert fast(x)[0].data_ptr() != x.data_ptr()


def test_a_model_without_inputs() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self) -> Tensor:
            return torch.relu(self.weight)

    fast = compiled(Table())
    assert fast().tolist() == [1, 1, 1]
    with pytest.raises(InvalidInput, match=r"too many positional arguments; the model takes \(\)"):
        fast(1)


def test_sixteen_threads() -> None:
    module, nested = Mlp(), Nested()
    fast = compiled(module, torch.randn(2, 4), engines=(("linear",), ("linear_1",)), dynamic_shapes=BATCH)
    deep = compiled(nested, *nest(), engines=(("mul", "relu"),))

    def call(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for turn in range(20):
            x = torch.randn(1 + (seed + turn) % 16, 4, generator=generator)
            torch.testing.assert_close(fast(x), module(x).detach())
            batch, rest = (
                {"ids": torch.randn(2, generator=generator), "mask": {"value": torch.ones(2)}},
                (torch.ones(2), [torch.ones(2)]),
            )
            torch.testing.assert_close(deep(batch, rest)["ordered"], nested(batch, rest)["ordered"])

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(call, seed) for seed in range(16)]:
            done.result()


def test_values_are_freed_after_their_last_use() -> None:
    alive: list[int] = []

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(6):
                x = torch.sin(x)
            return x

    fast = CompiledModule(export(Steps(), (torch.ones(3),)), {})
    names = [name for name, value in fast._run.__globals__.items() if value is torch.ops.aten.sin.default]
    sizes: list[Any] = []

    def watched(x: Tensor) -> Tensor:
        import weakref

        out = torch.sin(x)
        sizes.append(weakref.ref(out))
        alive.append(sum(ref() is not None for ref in sizes))
        return out

    fast._run.__globals__.update(dict.fromkeys(names, watched))
    fast(torch.ones(3))
    assert max(alive) <= 2


def test_what_an_inference_module_does_not_do() -> None:
    fast = compiled(Mlp(), torch.randn(2, 4))
    assert fast.eval() is fast and not fast.training and fast.to("cpu") is fast and fast.float() is fast
    assert fast.requires_grad_(False) is fast
    for call, sentence in [
        (lambda: fast.train(), "for inference and cannot be trained"),
        (lambda: fast.to("meta"), "compiled for cpu and cannot move to meta; compile the original model with device='meta'"),
        (lambda: fast.half(), "compile the original model with enabled_precisions={torch.float16}"),
        (lambda: fast.load_state_dict({}), "load them into the original model and compile it again"),
        (lambda: pickle.dumps(fast), r"cannot be pickled; write it with torchsmith.save\(module, path\)"),
        (lambda: torch.save(fast, "/dev/null"), "cannot be pickled"),
    ]:
        with pytest.raises(TorchsmithError, match=sentence):
            call()
    x = torch.randn(2, 4)
    torch.testing.assert_close(copy.copy(fast)(x), fast(x))
    torch.testing.assert_close(nn.Sequential(fast, nn.Identity()).eval()(x), fast(x))


def test_dropping_a_module_frees_its_engine() -> None:
    fast = compiled(Mlp(), torch.randn(2, 4))
    twin, loads = copy.deepcopy(fast), BACKEND.loads
    keys = {("toy", call.spec.id, "cpu") for call in fast.plan.engine_calls}
    del fast
    gc.collect()
    assert keys <= set(engines._loaded.keys())
    twin(torch.randn(2, 4))
    assert BACKEND.loads == loads
    del twin
    gc.collect()
    assert not keys & set(engines._loaded.keys())


def test_programs_that_no_module_can_be_made_of() -> None:
    class Scan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch._higher_order_ops.scan(lambda a, b: (a + b, a * b), torch.zeros(3), x, dim=0)[1]

    with pytest.raises(CaptureError, match="the higher-order op scan, which a compiled module cannot run"):
        CompiledModule(export(Scan(), (torch.ones(4, 3),)), {})


def test_an_engine_that_changed_is_refused() -> None:
    program = hybrid(Mlp(), (torch.randn(2, 4),))
    program.constants["engine_0"][-1] += 1
    with pytest.raises(EngineMismatch, match="have changed since it was built"):
        CompiledModule(program, {})
