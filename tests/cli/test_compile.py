"""`torchsmith compile` and `explain`, on every kind of model, checked in the file that comes out."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchsmith.cli import models
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.package import load
from torchsmith.quantize import precision
from torchsmith.testing.compare import relative_error

NETS = str(Path(__file__).parent / "nets.py")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, input: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(input)) * scale


def refused(result: Any, *parts: str) -> None:
    assert result.exit_code == 2 and result.stdout == "", result.stdout
    assert all(part in result.stderr for part in parts), result.stderr
    assert result.stderr.count("\n") == 1, "one sentence"


def test_the_package_computes_what_the_model_does(package: Path) -> None:
    made = runpy.run_path(NETS)
    torch.manual_seed(0)  # as the command seeds a function of the user's
    model, _, _ = made["masked"](batch=8)
    fast = load(package)
    for batch in (1, 3, 8):
        x, mask = torch.randn(batch, 8), torch.rand(batch, 8)
        with torch.no_grad():
            expected, got = model.double()(x.double(), mask=mask.double()), fast(x, mask=mask)
        assert expected.keys() == got.keys()
        assert all(relative_error(got[name], expected[name]) < 1e-5 for name in expected)


def test_what_compile_says(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    result = cli("compile", f"{NETS}:conv", "-o", path)
    assert result.exit_code == 0
    summary, file = result.stdout.splitlines()
    assert summary.startswith("1 engine (") and summary.endswith("; 0 in PyTorch")
    assert file.startswith(f"{path}: {models_size(path)}; model ") and "capture" in file and "save" in file
    assert result.stderr == ""


def models_size(path: Path) -> str:
    from torchsmith.cli.show import size

    return size(path.stat().st_size)


def test_an_exported_program(cli: Any, tmp_path: Path) -> None:
    net, x, scale = Net().eval(), torch.randn(2, 6), torch.randn(3)
    torch.export.save(torch.export.export(net, (x, scale)), tmp_path / "exported.pt2")
    assert cli("compile", tmp_path / "exported.pt2", "-o", tmp_path / "net.pt2").exit_code == 0
    assert relative_error(load(tmp_path / "net.pt2")(x, scale), net.double()(x.double(), scale.double())) < 1e-5


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript(cli: Any, tmp_path: Path) -> None:
    net, x, scale = Net().eval(), torch.randn(2, 6), torch.randn(3)
    script, path = tmp_path / "script.pt", tmp_path / "net.pt2"
    torch.jit.script(net).save(str(script))
    refused(cli("compile", script, "-o", path), "does not say what its inputs are", "--input")
    assert cli("compile", script, "--input", "1..4,6", "--input", "3", "-o", path).exit_code == 0
    fast, double = load(path), net.double()
    for rows in (x, x[:1]):
        assert relative_error(fast(rows, scale), double(rows.double(), scale.double())) < 1e-5


def test_a_package_is_not_compiled_again(cli: Any, package: Path, tmp_path: Path) -> None:
    refused(cli("compile", package, "-o", tmp_path / "again.pt2"), "is compiled already", "torchsmith inspect")


def test_a_checkpoint_is_no_model(cli: Any, tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    refused(cli("compile", tmp_path / "weights.pt", "-o", tmp_path / "x.pt2"), "was written by torch.save", "file.py:function")


def test_a_file_that_is_nothing(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("hello")
    refused(cli("compile", tmp_path / "text.pt2", "-o", tmp_path / "x.pt2"), "text.pt2", "no package")
    refused(cli("explain", tmp_path / "none.pt2"), "there is no file", "none.pt2")


def test_an_existing_file_is_replaced_only_where_it_is_a_package(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("precious")
    refused(cli("compile", f"{NETS}:fixed", "-o", path), "exists and is no torchsmith package", "--force")
    assert path.read_text() == "precious"
    assert cli("compile", f"{NETS}:fixed", "-o", path, "--force").exit_code == 0
    first = path.read_bytes()
    assert cli("compile", f"{NETS}:conv", "-o", path).exit_code == 0
    assert path.read_bytes() != first


def test_an_output_that_cannot_be_written_is_found_first(cli: Any, tmp_path: Path) -> None:
    refused(cli("compile", f"{NETS}:broken", "-o", tmp_path / "no" / "x.pt2"), "there is no folder")
    refused(cli("compile", f"{NETS}:broken", "-o", tmp_path), "it is a folder")


def test_explain_a_model(cli: Any) -> None:
    result = cli("explain", f"{NETS}:masked", "--min-block-size", 1)
    assert result.exit_code == 0
    assert "aten.special_bessel_j0" in result.stdout and "nets.py:" in result.stdout and "in PyTorch" in result.stdout
    report = json.loads(cli("explain", f"{NETS}:masked", "--min-block-size", 1, "--json").stdout)
    assert [r["op"] for r in report["refusals"]] == ["aten.special_bessel_j0.default"]


def test_explain_a_package_loads_no_engine(cli: Any, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchsmith import backends

    monkeypatch.setattr(backends, "get", lambda name: pytest.fail("a backend was asked for"))
    result = cli("explain", package)
    assert result.exit_code == 0 and "aten.special_bessel_j0" in result.stdout


def test_explain_a_package_takes_no_options(cli: Any, package: Path) -> None:
    refused(cli("explain", package, "--min-block-size", 2), "is compiled already, so --min-block-size has nothing to change")
    refused(cli("explain", package, "--batch", 2), "so --batch has nothing to change")


@pytest.mark.parametrize(("text", "sizes"), [("8", (8, 8)), ("1..16", (1, 16)), (" 2 .. 3", (2, 3))])
def test_sizes(text: str, sizes: tuple[int, int]) -> None:
    assert models.sizes("--batch", text) == sizes


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "4..2", "0"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(InvalidOption, match="--batch has the size"):
        models.sizes("--batch", text)


def test_inputs_are_described() -> None:
    args, kwargs = models.described(["1..8,3,224,224", "mask=1..8,128:int64", ":f64"])
    assert [str(a) for a in args] == ["Input((1..8, 3, 224, 224), f32)", "Input((), f64)"]
    assert str(kwargs["mask"]) == "Input((1..8, 128), i64)"


@pytest.mark.parametrize("text", ["a b=1", "1,3:", "1,3:x y", "=3", "1;3"])
def test_inputs_that_cannot_be_read(text: str) -> None:
    with pytest.raises((InvalidOption, InvalidInput), match="--input"):
        models.described([text])


def test_batch_where_it_has_no_meaning(cli: Any, package: Path) -> None:
    refused(cli("explain", f"{NETS}:fixed", "--batch", 3), "does not take a batch size", "--input")
    exported = package.with_name("exported.pt2")
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.randn(1, 2),)), exported)
    refused(cli("explain", exported, "--batch", 3), "--batch is for models made by name")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InvalidOption, match=r"need the package timm.*torchsmith\[bench\]"):
        models.read("resnet18", None, ())


def test_a_timm_name(cli: Any) -> None:
    result = cli("explain", "mobilenetv3_small_050", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["refusals"] == []


class Gated(nn.Module):
    """Looks at values, and takes a number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        y = self.net(x)
        return y * rate if bool(y.sum() > 0) else y


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; users have it all the same
def test_torchscript_with_control_flow(cli: Any, tmp_path: Path) -> None:
    script = torch.jit.script(Gated().eval())
    torch.jit.save(script, tmp_path / "gated.jit")
    flags = ["--input", "2,6", "--input", ":=3", "--min-block-size", 1]
    result = cli("compile", tmp_path / "gated.jit", *flags, "-o", tmp_path / "gated.pt2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("1 engine (openvino) with 3 of 3 ops; 0 in PyTorch, the control flow of Gated in TorchScript\n")
    x = torch.randn(2, 6)
    torch.testing.assert_close(load(tmp_path / "gated.pt2")(x, 3), script(x, 3))
    for explained in (cli("explain", tmp_path / "gated.pt2"), cli("explain", tmp_path / "gated.jit", *flags)):
        assert explained.exit_code == 0 and "Gated cannot be exported: its control flow" in " ".join(explained.stdout.split())
    inspected = cli("inspect", tmp_path / "gated.pt2")
    assert inspected.exit_code == 0 and "Gated, in TorchScript; net compiled" in inspected.stdout
    assert "0 of 3 ops" in inspected.stdout
    refused(cli("explain", tmp_path / "gated.jit", *flags, "--require-full-compilation"), "only parts of this model")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (":=16000", "", 16000),
        ("rate:=0.5", "rate", 0.5),
        ("flag:=true", "flag", True),
        ("x:=null", "x", None),
        (':="a=b"', "", "a=b"),
    ],
)
def test_inputs_that_are_no_tensors(text: str, name: str, value: Any) -> None:
    args, kwargs = models.described([text])
    assert (args, kwargs) == (([], {name: value}) if name else ([value], {}))


@pytest.mark.parametrize("text", [":=", ":=[1]", ":={}", "a:=b"])
def test_values_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidOption, match="after := it takes a number"):
        models.described([text])


def test_calibration_data_may_come_from_a_function_and_be_measured_on(cli: Any, tmp_path: Path) -> None:
    model, path = f"{NETS}:conv", tmp_path / "net.pt2"
    options = ("--precision", "f32,int8", "--accuracy-budget", "0.1")
    result = cli("compile", model, "-o", path, *options, "--calibrator", f"{NETS}:pictures")
    assert result.exit_code == 0, result.stderr
    accuracy = load(path).report["accuracy"]
    assert accuracy["allowed"] == 0.1 and accuracy["spent"] <= 0.1 and accuracy["batches"] == 3
    refused(cli("explain", model, *options), "accuracy_budget is measured on data")
    refused(cli("explain", model, *options, "--calibrator", f"{NETS}:NUMBER"), "no function 'NUMBER'; calibration data are given")
    refused(cli("explain", model, "--accuracy-budget", "tiny"), "accuracy_budget='tiny'; it takes a relative error such as 0.01")


def test_a_metric_may_come_from_a_function(cli: Any) -> None:
    data = ("--precision", "f32,int8", "--calibrator", f"{NETS}:labelled", "--min-block-size", "1")
    result = cli("explain", f"{NETS}:conv", *data, "--accuracy-budget", f"{NETS}:budget", "--json")
    assert result.exit_code == 0, result.stderr
    accuracy = json.loads(result.stdout)["accuracy"]
    assert accuracy["budget"] == "a loss of 10 in distance" and accuracy["measured_on"] == "the engines"
    refused(
        cli("explain", f"{NETS}:conv", *data, "--accuracy-budget", f"{NETS}:NUMBER"),
        "no function 'NUMBER'; a budget with a metric is given as file.py:function",
    )


def test_fp8_by_its_name(cli: Any, tmp_path: Path) -> None:
    options = ("--precision", "f32,fp8", "--calibrator", f"{NETS}:pictures", "--min-block-size", "1", "--json")
    precision._told.clear()
    elsewhere = cli("explain", f"{NETS}:conv", *options)
    assert "does not compute in torch.float8_e4m3fn natively" in elsewhere.stderr
    shown = cli("explain", f"{NETS}:conv", "--backend", "reference", *options)
    assert elsewhere.exit_code == shown.exit_code == 0, (elsewhere.stderr, shown.stderr)
    found = [{layer["precision"] for layer in json.loads(result.stdout)["layers"]} for result in (elsewhere, shown)]
    assert found == [{"float32"}, {"float32", "float8_e4m3fn"}]
    refused(cli("explain", f"{NETS}:conv", "--precision", "f32,fp8"), "has torch.float8_e4m3fn, and neither is there a calibrator")
