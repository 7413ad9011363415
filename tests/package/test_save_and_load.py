"""What is saved comes back in another process, the same to its caller."""

from __future__ import annotations

import copy
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

import torchsmith
from tests.package.packages import Net, compiled, elsewhere, package
from tests.runtime.toy import hybrid
from torchsmith.errors import InvalidInput, PackageError
from torchsmith.package import load, save
from torchsmith.package.archive import read_header
from torchsmith.runtime.compiled import CompiledModule


def test_the_same_module_comes_back(tmp_path: Path) -> None:
    module, fast = compiled()
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert again.plan == fast.plan and again.source == fast.source and again.report == fast.report
    for rows in (1, 9):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(again(x), fast(x), rtol=0, atol=0)
        torch.testing.assert_close(again(x, flag=True), module(x))
    with pytest.raises(InvalidInput, match=r"dimension 0 is 10, out of its range 1..9"):
        again(torch.randn(10, 4))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    _, fast = compiled(engines=())
    save(fast, tmp_path / "m.pt2")
    sizes = [size for size, _ in read_header(str(tmp_path / "m.pt2"))["entries"].values()]
    assert sizes.count(4 * 4 * 4) == 1
    again, x = load(tmp_path / "m.pt2"), torch.randn(2, 4)
    torch.testing.assert_close(again(x), fast(x))


def test_its_program_can_be_had_and_saved_again(tmp_path: Path) -> None:
    _, fast = compiled()
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    x = torch.randn(3, 4)
    torch.testing.assert_close(again.program.module()(x, flag=True), fast(x))
    save(again, tmp_path / "again.pt2")
    third = load(tmp_path / "again.pt2")
    assert third.plan == fast.plan
    torch.testing.assert_close(third(x), fast(x))
    rebuilt = CompiledModule(again.program, fast.report)
    torch.testing.assert_close(rebuilt(x), fast(x))


def test_a_program_whose_layers_have_numbers_for_names_can_be_had(tmp_path: Path) -> None:
    fast = torchsmith.compile(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).eval(),
        inputs=[torch.ones(2, 4)],
        torch_executed_ops={"aten.linear"},
    )
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert isinstance(again, CompiledModule)
    x = torch.randn(2, 4)
    torch.testing.assert_close(again.program.module()(x), fast(x))


def test_another_process_loads_it_without_a_compiler(tmp_path: Path) -> None:
    _, fast = compiled()
    save(fast, tmp_path / "m.pt2")
    x = torch.randn(3, 4)
    torch.save((x, fast(x)), tmp_path / "wanted.pt")
    done = elsewhere(
        """
        import torch, torchsmith
        from torchsmith.package import load
        from tests.runtime import toy
        before = set(sys.modules)
        module = load(sys.argv[1])
        new = set(sys.modules) - before
        x, wanted = torch.load(sys.argv[2])
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
        slow = {"sympy", "torch._dynamo", "torch._inductor", "torch._export.serde.serialize", "torchsmith.lower"}
        print(sorted(slow & new), toy.BACKEND.loads, module)
        """,
        tmp_path / "m.pt2",
        tmp_path / "wanted.pt",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 1 CompiledModule(1 toy engine, 5 ops in PyTorch, on cpu)\n"


def test_torch_opens_it_too(tmp_path: Path) -> None:
    _, fast = compiled()
    save(fast, tmp_path / "m.pt2")
    x = torch.randn(3, 4)
    torch.save((x, fast(x)), tmp_path / "wanted.pt")
    done = elsewhere(
        """
        import torch
        from torchsmith.runtime import engine_op
        from tests.runtime import toy
        extra = {"torchsmith.json": ""}
        program = torch.export.load(sys.argv[1], extra_files=extra)
        x, wanted = torch.load(sys.argv[2])
        torch.testing.assert_close(program.module()(x, flag=True), wanted)
        assert program.example_inputs is None and '"format": 1' in extra["torchsmith.json"]
        """,
        tmp_path / "m.pt2",
        tmp_path / "wanted.pt",
    )
    assert done.returncode == 0, done.stderr


def test_outputs_of_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    ids = torch.randint(0, 20, (2, 4))
    program = hybrid(BertModel(config), (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, engines=(("tanh",),))
    fast = CompiledModule(program, {})
    save(fast, tmp_path / "bert.pt2")
    torch.save((ids, fast(input_ids=ids, attention_mask=torch.ones_like(ids)).to_tuple()), tmp_path / "wanted.pt")
    done = elsewhere(
        """
        import torch
        from torchsmith.package import load
        from tests.runtime import toy
        assert "transformers" not in sys.modules
        module = load(sys.argv[1])
        ids, wanted = torch.load(sys.argv[2])
        out = module(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.testing.assert_close(out.to_tuple(), wanted)
        torch.testing.assert_close(out.pooler_output, wanted[1])
        print(type(out).__module__, type(out).__name__)
        torch.testing.assert_close(module.program.module()(input_ids=ids, attention_mask=torch.ones_like(ids)).to_tuple(), wanted)
        """,
        tmp_path / "bert.pt2",
        tmp_path / "wanted.pt",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "transformers.modeling_outputs BaseModelOutputWithPoolingAndCrossAttentions\n"


CLASSES = """
import dataclasses, torch
@dataclasses.dataclass
class Boxes:
    corners: torch.Tensor
torch.export.register_dataclass(Boxes, serialized_type_name="shop.Boxes")
"""


def test_classes_of_ones_own_must_be_registered_first(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(CLASSES, names)

    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return names["Boxes"](torch.relu(x))

    save(CompiledModule(export(Makes(), (torch.randn(2),)), {}), tmp_path / "m.pt2")
    code = "from torchsmith.package import load\nimport torch\nprint(type(load(sys.argv[1])(torch.ones(2))).__name__)"
    done = elsewhere(code, tmp_path / "m.pt2")
    assert "the class 'shop.Boxes', which is not registered in this process; import shop (or call torch.export" in done.stderr
    done = elsewhere(CLASSES + code, tmp_path / "m.pt2")
    assert done.stdout == "Boxes\n", done.stderr


@torch.library.custom_op("shop::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    return 3 * x


@triple.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.ops.shop.triple(x))


def test_custom_ops_must_be_registered_first(tmp_path: Path) -> None:
    fast = CompiledModule(hybrid(Custom(), (torch.ones(2),), engines=(("relu",),)), {})
    save(fast, tmp_path / "m.pt2")
    assert load(tmp_path / "m.pt2")(torch.ones(2)).tolist() == [3, 3]
    done = elsewhere("from torchsmith.package import load\nload(sys.argv[1])", tmp_path / "m.pt2")
    assert (
        "'shop::triple.default', a custom op that is not registered in this process; import the module that defines shop::triple"
        in done.stderr
    )


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count


@pytest.mark.parametrize("functional", [False, True])
def test_state_is_saved_as_it_is(tmp_path: Path, functional: bool) -> None:
    program = export(Counter(), (torch.zeros(1),))
    fast = CompiledModule(program.run_decompositions({}) if functional else program, {})
    x = torch.zeros(1)
    assert [fast(x).item(), fast(x).item()] == [1, 2]
    save(fast, tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert [again(x).item(), again(x).item(), fast(x).item()] == [3, 4, 3]
    twin = copy.deepcopy(again)
    assert [twin(x).item(), again(x).item()] == [5, 5]
    save(again, tmp_path / "again.pt2")
    assert load(tmp_path / "again.pt2")(x).item() == 6
    assert load(tmp_path / "m.pt2")(x).item() == 3


class Kinds(nn.Module):
    """Every dtype, empty and scalar tensors, views, strides, and constants of every sort among the arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("view", torch.arange(9000.0)[4:12].view(2, 4).t())
        self.register_buffer("last", torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last))
        self.register_buffer("empty", torch.zeros(0, 2))
        self.kinds = (torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64)
        for number, dtype in enumerate(self.kinds):
            self.register_buffer(f"kind{number}", torch.ones((), dtype=dtype))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = torch.full((2,), float("nan"), dtype=torch.complex64, device="cpu") * (1 + 2j)
        padded = nn.functional.pad(self.last, (1, 1), value=float("-inf")).contiguous(memory_format=torch.channels_last)
        kinds = [getattr(self, f"kind{i}").to(torch.float64) for i in range(len(self.kinds))]
        return [x + self.view, padded, torch.cat([x, self.empty]), made, *kinds]


def test_every_kind_of_tensor_and_constant(tmp_path: Path) -> None:
    fast = CompiledModule(export(Kinds(), (torch.ones(4, 2),)), {})
    save(fast, tmp_path / "m.pt2")
    x, again = torch.randn(4, 2), load(tmp_path / "m.pt2")
    torch.testing.assert_close(again(x), fast(x), equal_nan=True)
    torch.testing.assert_close(again.program.module()(x), fast(x), equal_nan=True)
    for name, tensor in fast.tensors.items():
        assert again.tensors[name].stride() == tensor.stride() and again.tensors[name].dtype == tensor.dtype
    assert (tmp_path / "m.pt2").stat().st_size < 36_000  # of a view, what it shows


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    _, fast = compiled()

    class Max(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.max(x, 0)

    for value, where, sentence in [
        (Net(), path, r"save\(\) takes what torchsmith.compile\(\) returned; it got Net; compile the model first"),
        (fast, tmp_path / "no" / "m.pt2", r"the folder .*/no does not exist; create it first"),
        (fast, tmp_path, "this is a folder; name a file"),
        (
            CompiledModule(export(Max(), (torch.randn(2),)), {}),
            path,
            "return_types.max is among the inputs or outputs, and torch has no name",
        ),
        (CompiledModule(fast.program, {"when": object()}), path, "the module's report is not plain data"),
    ]:
        with pytest.raises(PackageError, match=sentence):
            save(value, where)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package(tmp_path / "m.pt2")
    before = path.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(compiled()[1], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.pt2"]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    done = elsewhere(
        """
        import resource, signal
        from tests.package.packages import compiled
        from torchsmith.package import save
        fast = compiled()[1]
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        save(fast, sys.argv[1])
        """,
        tmp_path / "m.pt2",
    )
    assert "there is no room for its 0.0 MiB; free some or choose another folder; nothing was left behind" in done.stderr
    assert not list(tmp_path.iterdir())


def test_files_as_others_would_write_them(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link.pt2").symlink_to(real / "m.whatever")
    save(compiled()[1], tmp_path / "link.pt2")  # follows the link, adds no suffix
    assert os.listdir(real) == ["m.whatever"] and (tmp_path / "link.pt2").is_symlink()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((real / "m.whatever").stat().st_mode) == 0o666 & ~mask
    load(tmp_path / "link.pt2")


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    header = read_header(str(package(tmp_path / "m.pt2")))
    assert header["format"] == 1 and header["torch"] == torch.__version__ and header["target"]["device"] == "cpu"
    assert header["backends"] == {"toy": None} and header["report"]["seconds"] == 1.5
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        assert len(header["entries"]) == len(archive.namelist()) - 1
    assert str(Path.home()) not in json.dumps(header["plan"])
