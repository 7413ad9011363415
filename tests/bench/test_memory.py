"""Peak memory, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchsmith.bench.memory import own_peak_mb, peak_memory_mb

NETS = Path(__file__).parent / "nets.py"


def test_the_peak_stays_after_the_memory_is_gone() -> None:
    before = own_peak_mb()
    torch.ones(int(before) + 64, 2**18)  # a MiB a row
    assert own_peak_mb() >= before + 60


def test_a_side_is_not_charged_for_the_process_that_asks() -> None:
    held = torch.ones(2048, 2**18)
    peak = peak_memory_mb(f"{NETS}:conv", 1, "f32", "eager")
    assert peak is not None and 50 < peak < 2000 < own_peak_mb() and held.numel()


def test_a_process_that_fails_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory_mb(f"{NETS}:nothing", 1, "f32", "eager") is None
