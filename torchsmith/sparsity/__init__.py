"""2:4 sparsity: of each four weights along the reduction dimension at most two are not zero.

    sparse = torchsmith.sparsify(model)                  # a pruned copy
    print(torchsmith.sparsity.report(sparse))            # what was pruned, what was not, and why

    sparse = torchsmith.sparsify(model, finetune=True)   # the zeros stay zeros while it trains
    train(sparse)
    sparse = torchsmith.sparsity.make_permanent(sparse)

NVIDIA's sparse tensor cores, from sm_80 on, multiply such weights in half the instructions. Source: Mishra et al.,
"Accelerating Sparse Deep Neural Networks", 2021.
"""

from torchsmith.sparsity.masked import make_permanent
from torchsmith.sparsity.pattern import is_two_four, two_four_mask
from torchsmith.sparsity.plan import LayerSparsity, SparsityReport, plan
from torchsmith.sparsity.prune import report, sparsify

__all__ = [
    "LayerSparsity",
    "SparsityReport",
    "is_two_four",
    "make_permanent",
    "plan",
    "report",
    "sparsify",
    "two_four_mask",
]
