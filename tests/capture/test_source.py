from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchsmith.capture import capture
from torchsmith.capture.source import error_line, innermost, layer, raised_here, shorten, source_line
from torchsmith.inputs import Input, resolve


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return torch.special.entr(y)


def test_a_node_knows_the_users_line_and_its_layer() -> None:
    program = capture(nn.Sequential(Block(), nn.ReLU()).eval(), resolve([Input((2, 4))])).program
    linear, entr, relu = (n for n in program.graph.nodes if n.op == "call_function")
    assert source_line(linear) is not None
    assert str(source_line(linear)).endswith("y = self.fc(x)") and layer(linear) == "0.fc"
    assert str(source_line(entr)).endswith("return torch.special.entr(y)") and layer(entr) == "0"
    assert "torch/nn/modules/activation.py" in str(source_line(relu)) and layer(relu) == "1", "no line of the user's: the layer's"


def node_with(meta: dict[str, object]) -> torch.fx.Node:
    node = torch.fx.Graph().placeholder("x")
    node.meta.update(meta)
    return node


@pytest.mark.parametrize("meta", [{}, {"stack_trace": None}, {"stack_trace": ""}, {"stack_trace": "nonsense\n\n  File"}])
def test_a_node_without_a_trace_has_no_line(meta: dict[str, object]) -> None:
    assert source_line(node_with(meta)) is None and layer(node_with(meta)) is None


def test_the_innermost_frame_that_is_not_torchs() -> None:
    torch_file = os.path.join(os.path.dirname(torch.__file__), "nn", "functional.py")
    frames = [("model.py", 3, "y = f(x)"), ("lib.py", 9, "return g(x)"), (torch_file, 5, "z")]
    trace = "\n".join(f'  File "{file}", line {line}, in forward\n    {code}' for file, line, code in frames)
    assert source_line(node_with({"stack_trace": trace})) == "lib.py:9  return g(x)"
    assert innermost([("<eval_with_key>.3", 1, "x"), ("model.py", 2, "")]) == "model.py:2"
    assert innermost([(torch_file, 7, "z")], own_only=True) is None
    assert (
        innermost([("code/__torch__/torch/nn/modules/conv.py", 7, "z"), ("code/__torch__/net.py", 2, "y")])
        == "code/__torch__/net.py:2  y"
    )


def test_paths_are_told_relative_to_where_they_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib"), *sys.path])
    assert shorten(str(tmp_path / "lib" / "pkg" / "net.py")) == os.path.join("pkg", "net.py")
    monkeypatch.chdir(tmp_path)
    assert shorten(str(tmp_path / "net.py")) == "net.py" == shorten("net.py")
    assert shorten("/nowhere/else/net.py") == "/nowhere/else/net.py"


def test_an_error_knows_the_line_that_raised_it() -> None:
    def fails() -> None:
        raise ValueError("no")  # this one

    try:
        try:
            fails()
        except ValueError as error:
            raise RuntimeError("told") from error
    except RuntimeError as error:
        assert str(error_line(error)).endswith('raise ValueError("no")  # this one')
        assert not raised_here(error)
    assert error_line(ValueError("never raised")) is None
