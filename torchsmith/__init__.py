"""torchsmith: an inference compiler for PyTorch.

    fast = torchsmith.compile(model, inputs=[torchsmith.Input((1, 3, 224, 224))], enabled_precisions={torch.bfloat16})
    torchsmith.save(fast, "model.pt2")
    fast = torchsmith.load("model.pt2")

With torchsmith imported, `torch.export.load` opens such a file too.
"""

from torchsmith import ptq
from torchsmith.compile import compile, convert_method_to_trt_engine
from torchsmith.dtypes import dtype
from torchsmith.explain import explain
from torchsmith.inputs import Device, Input
from torchsmith.package import load, save
from torchsmith.quantize.budget import AccuracyBudget
from torchsmith.sparsity import sparsify
from torchsmith.version import __version__

__all__ = [
    "AccuracyBudget",
    "Device",
    "Input",
    "__version__",
    "compile",
    "convert_method_to_trt_engine",
    "dtype",
    "explain",
    "load",
    "ptq",
    "save",
    "sparsify",
]
