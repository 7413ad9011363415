"""What every test can rely on: no network, no more threads than cores, workers that fit the machine."""

from __future__ import annotations

import os
import re
import sys

# before anything imports them: OpenMP and the hub's client read these once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

WORKER_BYTES = 3 << 30  # what a worker that runs a ViT-B in float64 beside its engines may take
CHANGING_ID = re.compile(r"\{[^{}:]*,[^{}:]*\}| at 0x")  # a set's members as they are hashed, an address


def pytest_configure(config: pytest.Config) -> None:
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None and not hub.HF_HUB_OFFLINE:
        raise pytest.UsageError("A plugin imported huggingface_hub before tests/conftest.py took it offline; set HF_HUB_OFFLINE=1.")
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)  # one worker a core


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: a worker for each core that this process may use, as far as memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory_bytes // WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers must agree on every test's name, and hashes differ from one to another."""
    changing = [item.nodeid for item in items if CHANGING_ID.search(item.nodeid)]
    if changing:
        raise pytest.UsageError("These names change from process to process; give parametrize other ids: " + ", ".join(changing))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
