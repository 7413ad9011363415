"""What calibration makes of whole networks, as OpenVINO executes it: nothing between int8 layers falls back to floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.openvino import engine as engines
from torchsmith.target import this_cpu
from torchsmith.testing.compare import relative_error

needs_int8 = pytest.mark.skipif("avx2" not in this_cpu().features, reason="OpenVINO has int8 kernels for x86 with AVX2 and later")


class Residual(nn.Module):
    """As in a ResNet: a first convolution on pixels, two blocks, the mean of each channel, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList((nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1))) for _ in range(2))
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for narrow, wide in self.blocks:  # type: ignore[misc]
            x = torch.relu(wide(torch.relu(narrow(x))) + x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def executed(monkeypatch: pytest.MonkeyPatch, model: nn.Module, data: list[Tensor]) -> tuple[Any, list[tuple[str, str, str]]]:
    """The compiled module, and (layer type, precision, precision of the output) of what runs in its engine, in order."""
    made: list[bytes] = []
    pack = engines.pack

    def keep(*args: Any, **kwargs: Any) -> bytes:
        made.append(pack(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(engines, "pack", keep)
    options: dict[str, Any] = {"enabled_precisions": {torch.float32, torch.int8}, "calibrator": data, "backend": "openvino"}
    fast = torchsmith.compile(model, inputs=[data[0]], **options)
    assert len(made) == 1, "one engine"
    infos = [
        node.get_rt_info() for node in engines.unpack(engines.parse(made[0]), this_cpu()).get_runtime_model().get_ordered_ops()
    ]
    names = ("layerType", "runtimePrecision", "outputPrecisions")
    rows = [(i[names[0]].astype(str), i[names[1]].astype(str), i[names[2]].astype(str)) for i in infos]
    return fast, rows


@needs_int8
def test_between_the_first_convolution_and_the_classifier_all_is_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), [torch.rand(2, 3, 16, 16) for _ in range(4)]
    fast, rows = executed(monkeypatch, model, data)
    layers = [row for row in rows if row[0] in ("Convolution", "FullyConnected", "MatMul")]
    assert [precision for _, precision, _ in layers] == ["f32", "u8", "u8", "u8", "u8", "u8"], rows
    assert [output for _, _, output in layers[1:5]] == ["u8"] * 4, rows  # sums and activations are in the convolutions
    assert not any(kind in ("Eltwise", "Subgraph") and output == "f32" for kind, _, output in rows), rows
    with torch.no_grad():
        assert relative_error(fast(data[0]), model(data[0])) < 0.03
