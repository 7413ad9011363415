"""The debug ladder, dumps, verification with planted faults, and the folder that a failure leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchsmith import debug
from torchsmith.config import Config, LowerConfig, QuantizeConfig
from torchsmith.debug import programs, repro
from torchsmith.errors import InternalError, InvalidInput, VerificationError
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.types import TensorType
from torchsmith.ops.unary import Unary
from torchsmith.quantize.budget import AccuracyBudget

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu() + 1


def program() -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(Net().eval(), (torch.randn(2, 4),))


class Staged:
    """What a stage gives."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program


def no_change(value: ExportedProgram) -> Staged:
    return Staged(value)


def set_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("DEBUG", "DUMP", "VERIFY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# the ladder


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        ("0", [], ["lower"]),
        ("1", [r"lower +\d+\.\d+ s  3 ops, 0\.0 MiB"], ["lower-relu"]),
        ("2", [r"  lower-relu_to_sin +\d+\.\d+ s  3 → 3 ops"], ["── lower"]),
        (
            "3",
            [r"── lower\n", r"%linear: f32\[2, 3\] = aten\.linear\.default\(%x, %p_linear_weight, %p_linear_bias\)"],
            ["── lower-relu_to_sin"],
        ),
        ("4", [r"── lower-relu_to_sin\n"], ["test_debug.py:"]),
        ("5", [r"# tests/test_debug\.py:\d+  return self\.linear"], ["greatest"]),
        ("6", [r"%linear +mean .* least .* greatest"], []),
        ("a lot", [], ["lower"]),
    ],
)
def test_each_level_shows_more(
    level: str, shown: list[str], hidden: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    set_environment(monkeypatch, DEBUG=level)

    def lower(value: ExportedProgram) -> Staged:
        watch = debug.watch("lower", value)
        relu_to_sin(value)
        watch("relu_to_sin", value)
        watch("nothing", value)
        return Staged(value)

    with debug.road(Config()) as stage:
        stage("lower", lower, program())
    text = capfd.readouterr().err
    assert all(re.search(pattern, text) for pattern in shown), text
    assert not any(part in text for part in hidden), text
    assert "── lower-nothing" not in text


def relu_to_sin(value: ExportedProgram) -> None:
    (relu,) = (node for node in value.graph.nodes if "relu" in str(node.target))
    relu.target = aten.sin.default


def test_dumps_are_numbered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_environment(monkeypatch, DUMP=str(tmp_path / "new"))
    with debug.road(Config()) as stage:
        captured = stage("capture", no_change, program())
        stage("lower", no_change, captured.program)
    debug.graph("convert-0", graph())
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name.partition("-")[2] for file in files] == ["capture.txt", "lower.txt", "convert-0.txt"]
    numbers = [int(file.name.partition("-")[0]) for file in files]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert "aten.linear.default" in files[0].read_text() and "test_debug.py" in files[0].read_text()
    assert "Unary[relu]" in files[2].read_text()


def test_a_stage_gives_what_it_gives() -> None:
    with debug.road(Config()) as stage:
        assert stage("odd", lambda a, b: a + b, 1, b=2) == 3


# verification


def graph(broken: bool = False) -> Graph:
    with Builder() as builder:
        x = builder.input(TensorType((2, 3), torch.float32))
        y = Unary("relu")(x)
    found = builder.finish([y])
    if broken:
        (node,) = found.nodes
        found = Graph(found.inputs, (Node(node.op, node.inputs, node.outputs), node), found.outputs)
    return found


def test_graphs_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    debug.graph("convert-0", graph(broken=True))
    set_environment(monkeypatch, VERIFY="1")
    debug.graph("convert-0", graph())
    with pytest.raises(VerificationError, match=r"after convert-0:\n  two values are called %unary"):
        debug.graph("convert-0", graph(broken=True))


def forget_a_value(value: ExportedProgram) -> None:
    relu_of(value).meta.pop("val")


def lie_about_a_type(value: ExportedProgram) -> None:
    relu_of(value).meta["val"] = relu_of(value).meta["val"].double()


def lose_a_parameter(value: ExportedProgram) -> None:
    del value.state_dict["linear.weight"]


def misname_the_output(value: ExportedProgram) -> None:
    value.graph_signature.output_specs[0].arg.name = "elsewhere"


def drop_a_node_that_is_used(value: ExportedProgram) -> None:
    value.graph_signature.input_specs.pop()


def relu_of(value: ExportedProgram) -> torch.fx.Node:
    return next(node for node in value.graph.nodes if "relu" in str(node.target))


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (forget_a_value, "no value in its meta"),
        (lie_about_a_type, r"%relu is recorded as f64\[2, 3\], and aten.relu.default gives f32\[2, 3\]"),
        (lose_a_parameter, "stands for linear.weight, which the program does not hold"),
        (misname_the_output, "output %add is called elsewhere in the signature"),
        (drop_a_node_that_is_used, "torch's verifier says"),
    ],
)
def test_planted_violations_are_found(plant: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, VERIFY="1")
    value = program()
    watch = debug.watch("lower", value)
    watch("nothing", value)
    plant(value)
    next(iter(value.graph.nodes)).meta["note"] = 1
    with pytest.raises(VerificationError, match=sentence):
        programs.verify(value, "lower-bad")


def test_a_pass_that_breaks_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, VERIFY="1")
    value = program()
    watch = debug.watch("lower", value)
    lie_about_a_type(value)
    with pytest.raises(VerificationError, match="after lower-bad:"):
        watch("bad", value)


def test_a_pass_that_changes_results_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    value = program()
    set_environment(monkeypatch, VERIFY="1")
    watch = debug.watch("lower", value)
    relu_to_sin(value)
    watch("wrong", value)  # the rules hold
    set_environment(monkeypatch, VERIFY="2")
    value = program()
    watch = debug.watch("lower", value)
    watch("nothing", value)
    relu_to_sin(value)
    with pytest.raises(VerificationError, match=r"lower-wrong changed output 0: relative error 0\.\d+ on the example inputs"):
        watch("wrong", value)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls.add_(1)
        x.mul_(2)
        return x + self.calls[0].to(torch.float32) + torch.zeros(2)


def test_results_are_float64_and_include_what_is_written() -> None:
    x = torch.ones(2)
    value = torch.export.export(Writes(), (x, x.clone()))
    for form in (value, value.run_decompositions({})):
        found = programs.results(form)
        assert found is not None and sorted(found) == ["output 0", "the value left in calls", "the value left in x"]
        assert all(tensor.dtype == torch.float64 for tensor in found.values())
        assert found["output 0"].tolist() == [3, 3] and found["the value left in x"].tolist() == [2, 2]
    assert x.tolist() == [1, 1] and value.state_dict["calls"].tolist() == [0, 0]
    assert torch.get_default_dtype() == torch.float32


def test_results_without_examples_or_doubles() -> None:
    value = program()
    value._example_inputs = None
    assert programs.results(value) is None and "no example inputs" in programs.statistics(value)
    programs.compare(None, None, "nothing", 0.0)
    quantizing = torch.export.export(FakeQuantized(), (torch.randn(3),))
    found = programs.results(quantizing)
    assert found is not None and found["output 0"].dtype == torch.float32
    assert programs.tolerance(quantizing) == pytest.approx(1e-4) and programs.tolerance(program()) == pytest.approx(1e-5)


class FakeQuantized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


@pytest.mark.parametrize(
    ("a", "b", "differs"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), False),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 1e-7]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), True),
        (torch.zeros(0), torch.zeros(0), False),
        (torch.tensor([True]), torch.tensor([False]), True),
        (torch.ones(2), torch.ones(2, 1), True),
        (None, None, False),
        (3, 4, True),
    ],
)
def test_comparing(a: Any, b: Any, differs: bool) -> None:
    if differs:
        with pytest.raises(VerificationError, match="p changed output 0"):
            programs.compare({"output 0": a}, {"output 0": b}, "p", 1e-5)
    else:
        programs.compare({"output 0": a}, {"output 0": b}, "p", 1e-5)
    with pytest.raises(VerificationError, match="p changed what the program gives"):
        programs.compare({"output 0": a}, {}, "p", 1e-5)


# failures


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(repro.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fails(*_: Any) -> Any:
    return {}["a bug"]


def test_a_bug_leaves_a_folder_without_the_weights(temporary: Path) -> None:
    value, config = (
        program(),
        Config(backend="openvino", quantize=QuantizeConfig(frozenset({torch.bfloat16})), lower=LowerConfig(False)),
    )
    with (
        pytest.raises(InternalError, match=r"the lower stage failed with KeyError: 'a bug'") as caught,
        debug.road(config) as stage,
    ):
        captured = stage("capture", no_change, value)
        stage("lower", fails, captured)
    assert isinstance(caught.value.__cause__, KeyError)
    (folder,) = temporary.iterdir()
    assert str(folder) in str(caught.value) and "run.py" in str(caught.value)
    assert {file.name for file in folder.iterdir()} == {
        "traceback.txt", "versions.txt", "options.json", "program.txt", "program.pt2", "run.py",
    }  # fmt: skip
    options = json.loads((folder / "options.json").read_text())
    assert options["backend"] == "openvino" and options["enabled_precisions"] == ["bfloat16"] and options["fold_constants"] is False
    options["enabled_precisions"] = {getattr(torch, name) for name in options["enabled_precisions"]}
    assert Config.from_options(**options) == config
    traceback, versions = ((folder / name).read_text() for name in ("traceback.txt", "versions.txt"))
    assert "KeyError" in traceback and f"torch {torch.__version__.partition('+')[0]}" in versions
    saved = torch.export.load(folder / "program.pt2")
    assert all(not tensor.any() for tensor in saved.state_dict.values()), "the weights were saved"
    loaded = repro.reload(folder / "program.pt2")
    assert programs.count(loaded) == 3 and all(tensor.all() for tensor in loaded.state_dict.values())
    assert value.state_dict["linear.weight"].any()


def test_what_only_the_user_has_is_left_out(temporary: Path) -> None:
    data, metric = [torch.ones(2, 3), torch.zeros(2, 3)], AccuracyBudget(lambda outputs, batch: 1.0, 0.1)
    options = {"enabled_precisions": {torch.int8, torch.float32}, "calibrator": data, "accuracy_budget": metric}
    folder = repro.write("build", program(), Config.from_options(**options), ValueError("x"))
    written = json.loads((folder / "options.json").read_text())
    assert written["enabled_precisions"] == ["float32", "int8"]
    assert written["calibrator"] is None and written["accuracy_budget"] is None


def test_the_script_runs_the_failure_again(temporary: Path, tmp_path: Path) -> None:
    folder = repro.write("lower", program(), Config(), ValueError("x"))
    script = (folder / "run.py").read_text()
    compile(script, "run.py", "exec")
    script = script.replace("torchsmith.compile(program, **options)", "print(type(program).__name__, len(options))")
    (folder / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("ExportedProgram"), done.stderr


@pytest.mark.parametrize("error", [InvalidInput("a sentence"), FileNotFoundError("a file"), KeyboardInterrupt()])
def test_what_is_no_bug_passes_through(error: BaseException, temporary: Path) -> None:
    def stage_fails() -> None:
        raise error

    with pytest.raises(type(error)), debug.road(Config()) as stage:
        stage("lower", stage_fails)
    assert not list(temporary.iterdir())


def test_an_interrupt_while_writing_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repro, "_versions", interrupted)
    with pytest.raises(KeyboardInterrupt), repro.failing("lower", program(), Config()):
        fails()
    assert not list(temporary.iterdir())


def test_before_there_is_a_program(temporary: Path) -> None:
    with pytest.raises(InternalError, match=r"the capture stage failed"), repro.failing("capture", None, Config()):
        fails()
    (folder,) = temporary.iterdir()
    assert {file.name for file in folder.iterdir()} == {"traceback.txt", "versions.txt", "options.json"}


def test_a_program_that_cannot_be_saved_is_told_as_text(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise RuntimeError("cannot serialise this")

    monkeypatch.setattr(torch.export, "save", refuses)
    with pytest.raises(InternalError, match="KeyError"), repro.failing("lower", program(), Config()):
        fails()
    (folder,) = temporary.iterdir()
    assert "cannot serialise this" in (folder / "not-saved.txt").read_text() and not (folder / "run.py").exists()
    assert "aten.linear" in (folder / "program.txt").read_text()
