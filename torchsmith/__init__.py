"""torchsmith: an inference compiler for PyTorch.

    fast = torchsmith.compile(model, inputs=[torchsmith.Input((1, 3, 224, 224))], enabled_precisions={torch.bfloat16})
"""

from torchsmith.compile import compile
from torchsmith.dtypes import dtype
from torchsmith.explain import explain
from torchsmith.inputs import Device, Input
from torchsmith.version import __version__

__all__ = ["Device", "Input", "__version__", "compile", "dtype", "explain"]
