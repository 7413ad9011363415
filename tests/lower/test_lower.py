"""The whole stage: what it leaves, that it changes no result, and that it leaves the captured program alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.lower.programs import agrees, exported, ops
from torchsmith.capture import Captured
from torchsmith.config import LowerConfig
from torchsmith.debug import programs
from torchsmith.lower import PASSES, lower
from torchsmith.testing.compare import relative_error


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(8, 8, 1))
        self.norm, self.gamma, self.head = nn.BatchNorm2d(8), nn.Parameter(torch.rand(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.norm(self.body(x)) * self.gamma.view(1, -1, 1, 1)
        return self.head(x.mean((2, 3)).contiguous())


X = torch.randn(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFY", "2")


def test_a_network() -> None:
    module = Net().eval()
    program = exported(module, X)
    text, held = programs.to_text(program), [*program.state_dict, *program.constants]
    lowered = lower(Captured(program)).program
    assert ops(lowered) == ["conv2d", "relu", "conv2d", "mean", "linear"]
    assert programs.to_text(program) == text and [*program.state_dict, *program.constants] == held
    agrees(lowered, module, X, limit=1e-5)


def test_weights_are_shared_not_copied() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).eval()
    lowered = lower(Captured(exported(module, torch.randn(2, 4)))).program
    assert lowered.state_dict["0.weight"].data_ptr() == module[0].weight.data_ptr()


def test_dynamic_batch() -> None:
    module = Net().eval()
    lowered = lower(Captured(exported(module, X, dynamic=({0: torch.export.Dim("n", min=1, max=8)},)))).program
    assert list(lowered.range_constraints) and "batch_norm" not in ops(lowered)
    agrees(lowered, module, torch.randn(5, 3, 8, 8), limit=1e-5)


def test_passes_can_be_switched_off_and_ops_kept() -> None:
    program = exported(Net().eval(), X)
    plain = lower(Captured(program), LowerConfig(fold_constants=False, fold_batch_norm=False)).program
    assert ops(plain).count("batch_norm") == 2 and "view" not in ops(plain) and "reshape" in ops(plain)
    kept = lower(Captured(program), keep={"aten.batch_norm"}).program
    assert ops(kept).count("batch_norm") == 2


def test_a_lowered_program_can_be_saved_and_lowered_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = Net().eval()
    lowered = lower(Captured(exported(module, X))).program
    torch.export.save(lowered, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    agrees(loaded, module, X, limit=1e-5)
    again = lower(Captured(loaded)).program
    assert ops(again) == ops(lowered)
    agrees(again, module, X, limit=1e-5)


class Structured(nn.Module):
    def forward(self, x: dict[str, Tensor], *, scale: float) -> tuple[Tensor, dict[str, Tensor | None]]:
        return x["a"], {"b": x["b"] * scale, "none": None}


def test_inputs_and_outputs_keep_their_nesting() -> None:
    x = {"a": torch.randn(2), "b": torch.randn(2)}
    program = torch.export.export(Structured(), (x,), {"scale": 2.0})
    given = lower(Captured(program)).program.module()(x, scale=2.0)
    assert given[0] is x["a"] or given[0].data_ptr() == x["a"].data_ptr()
    assert torch.equal(given[1]["b"], x["b"] * 2) and given[1]["none"] is None


def test_every_pass_has_a_file_of_its_name() -> None:
    assert all(apply.__module__ == f"torchsmith.lower.{apply.__name__}" for apply in PASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("resnet18", {"batch_norm", "relu_", "add_"}),
        ("mobilenetv3_large_100", {"batch_norm", "hardswish_", "dropout"}),
        ("levit_128s", {"batch_norm", "index", "dropout"}),
    ],
)
def test_real_networks(name: str, gone: set[str]) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, exportable=True).eval()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(1, 3, 224, 224)
    lowered = lower(Captured(exported(module, x))).program
    assert not gone & set(ops(lowered))
    assert sum(t.nbytes for t in (*lowered.state_dict.values(), *lowered.constants.values())) <= 1.05 * sum(
        t.nbytes for t in module.state_dict().values()
    )
    with torch.no_grad():
        given = lowered.module()(x)
        assert relative_error(given, module.double()(x.double())) <= 1e-5
