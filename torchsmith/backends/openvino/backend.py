"""Engines made and run by OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.text import from_bytes, to_bytes
from torchsmith.ops.registry import load_all
from torchsmith.target import Target


class OpenVinoBackend:
    name = "openvino"

    def available(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed; pip install openvino"
        return None

    def refuses(self, node: Node, target: Target) -> str | None:
        from torchsmith.backends.openvino import emit

        return emit.refuses(node, {})

    def build(self, graph: Graph, target: Target, config: BuildConfig) -> bytes:
        return to_bytes(graph)

    def load(self, engine: bytes, target: Target) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        import openvino as ov

        from torchsmith.backends.openvino import emit

        load_all()
        graph = from_bytes(engine)
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = ov.Core().compile_model(emit.emit(graph), "CPU", options)
        request = compiled.create_infer_request()

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            feed = []
            for t in inputs:
                t = t.detach().contiguous()
                feed.append(ov.Tensor(t.view(torch.int16).numpy(), t.shape, ov.Type.bf16) if t.dtype == torch.bfloat16 else ov.Tensor(t.numpy()))
            for i, f in enumerate(feed):
                request.set_input_tensor(i, f)
            request.infer()
            outs = []
            for i, v in enumerate(graph.outputs):
                o = request.get_output_tensor(i)
                if v.type.dtype == torch.bfloat16:
                    outs.append(torch.from_numpy(o.data.view("int16").reshape(o.shape).copy()).view(torch.bfloat16))
                else:
                    outs.append(torch.from_numpy(o.data.copy()).reshape(list(o.shape)))
            return outs

        return run


BACKEND = OpenVinoBackend()
