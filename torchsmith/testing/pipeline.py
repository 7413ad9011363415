"""The road, one stage a call, for tests:

Pipeline(Net(), x).capture().lower().partition().build("openvino").matches()
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchsmith import backends
from torchsmith.build import build
from torchsmith.capture import capture
from torchsmith.config import Config
from torchsmith.inputs import resolve
from torchsmith.lower import lower
from torchsmith.partition.segments import Partitioned, partition
from torchsmith.report import report
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.testing.compare import check_close, doubled, relative_error


class Pipeline:
    """Takes a module down the road. Every stage keeps its value: `.captured`, `.lowered`, `.partitioned`, `.built`, `.module`."""

    def __init__(
        self, module: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None, backend: str = "openvino", **options: Any
    ) -> None:
        options.setdefault("min_block_size", 1)
        self.original, self.inputs, self.kwargs = module, inputs, dict(kwargs or {})
        self.config, self.backend_name = Config.from_options(**options), backend
        self.target = backends.target_of("cpu")

    def capture(self) -> Pipeline:
        self.captured = capture(self.original, resolve(self.inputs, self.kwargs), self.config.capture)
        return self

    def lower(self) -> Pipeline:
        self.lowered = lower(self.captured, self.config.lower, keep=self.config.partition.torch_executed_ops)
        return self

    def partition(self) -> Pipeline:
        backend = backends.get(self.backend_name)
        self.partitioned: Partitioned = partition(
            self.lowered.program, lambda n: backend.refuses(n, self.target), self.config.partition
        )
        return self

    def build(self, backend: str | None = None) -> Pipeline:
        chosen = backends.get(backend or self.backend_name)
        self.built = build(self.partitioned, chosen, self.target, self.config)
        record = report(self.partitioned, self.built, chosen, self.target, self.config, 0.0)
        self.module = CompiledModule(self.built.program, record, self.captured.signature)
        return self

    def whole(self) -> Pipeline:
        """Assert that nothing stays in PyTorch."""
        refused = [f"{r.op}: {r.reason} ({r.where})" for r in self.partitioned.refusals]
        assert not refused, "stays in PyTorch:\n  " + "\n  ".join(refused)
        assert len(self.partitioned.segments) == 1, f"{len(self.partitioned.segments)} segments"
        return self

    def falls_back(self, op: str, why: str) -> Pipeline:
        """Assert that an op whose name has `op` in it stays in PyTorch, for a reason that matches the pattern `why`."""
        refusals = self.partitioned.refusals
        assert any(op in r.op and re.search(why, r.reason) for r in refusals), f"no refusal of {op!r} for {why!r} among {refusals}"
        return self

    def matches(self, inputs: tuple[Any, ...] | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Assert that the compiled module gives the original's outputs, within the tolerance of their dtype."""
        inputs = self.inputs if inputs is None else inputs
        with torch.no_grad():
            given, wanted = self.module(*inputs, **self.kwargs), self.original(*inputs, **self.kwargs)
        assert pytree.tree_structure(given) == pytree.tree_structure(wanted), f"{type(given)}, the original gives {type(wanted)}"
        check_close(given, wanted, dtype)
        return self

    def error(self) -> tuple[float, float]:
        """Relative errors against the original in float64: the compiled module's, and the original's own; the worst output each."""
        with torch.no_grad():
            reference = copy.deepcopy(self.original).double()(*doubled(self.inputs), **doubled(self.kwargs))
            sides = self.module(*self.inputs, **self.kwargs), self.original(*self.inputs, **self.kwargs)
        ours, theirs = (
            max(
                relative_error(a, b)
                for a, b in zip(pytree.tree_leaves(side), pytree.tree_leaves(reference))
                if isinstance(b, Tensor)
            )
            for side in sides
        )
        return ours, theirs
