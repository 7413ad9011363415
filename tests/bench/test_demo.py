"""The demo's last part: real weights on real pictures, before and after compiling."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import torchsmith

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_what_they_are(demo: ModuleType) -> None:
    model = demo.lite0_with_weights()
    fast = torchsmith.compile(model, inputs=[torchsmith.Input((1, 3, 224, 224))])
    for name, label in (("cat", "Egyptian cat"), ("coffee", "espresso"), ("rocket", "missile")):
        picture = demo.read_picture(name)
        assert picture.shape == (1, 3, 224, 224) and float(picture.min()) >= -1 and float(picture.max()) <= 1
        best = demo.top5(model, picture)
        assert len(best) == 5 and best[0].endswith(label)
        assert demo.top5(fast, picture) == best
