"""Linear layers and 1×1 convolutions with 2:4 weights on sparse tensor cores, by cuSPARSELt or CUTLASS.

The library adds the bias, cuSPARSELt also a residual and relu; what else follows is one pointwise launch. k×k convolutions
stay dense: as a product each picture would be written k² times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from torchsmith.backends.cuda import cusparselt as direct
from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.layout import View, byte_alignment, divisible
from torchsmith.backends.cuda.sparse import CUSPARSELT, CUTLASS, HALVES, LAYOUTS, SparseLinear, has_cusparselt, has_cutlass
from torchsmith.backends.cuda.tactics.after import emit_after, plan_after, renamed
from torchsmith.backends.cuda.tactics.cublas import ACTIVATIONS, features_innermost
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.backends.cuda.two_four import packed
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, product
from torchsmith.ir.graph import Node, Value
from torchsmith.sparsity.pattern import is_two_four

MAINS = ("Linear", "Convolution")
INTEGER_MAINS = ("IntegerLinear", "IntegerConvolution")
# Of cuSPARSELt's kernels the one that it takes itself: its search among them ended in an illegal instruction (0.8.0, H200).
ALGORITHMS = (0,)


@dataclass(frozen=True)
class SparseConfig:
    """library: "cusparselt" or "cutlass". algorithm: see `SparseLinear`. fused: whether what follows is in the library's kernel."""

    library: str
    algorithm: int = 0
    fused: bool = False


class SparseTemplate:
    name = "sparse"
    kinds = frozenset({"gemm", "Linear", "convolution", "Convolution"})
    config_type = SparseConfig

    def configs(self, e: Emission) -> Sequence[SparseConfig]:
        parts = product_of(e, *MAINS)
        if parts.main.inputs[0].type.dtype not in HALVES:
            raise Unsupported(f"a sparse product of {parts.main.inputs[0].type.dtype}; it takes float16 and bfloat16")
        given = libraries(e, parts, 2)
        found = [
            replace(c, fused=True) for c in given if c.library == CUSPARSELT and fused_after(parts.after, parts.main.outputs[0])
        ]
        found += given
        self.emit(Emission(e.node, e.views, e._packed), found[-1])  # whether what follows can be written
        return found

    def emit(self, e: Emission, config: SparseConfig) -> None:
        parts = product_of(e, *MAINS)
        main, (output,) = parts.main, parts.outputs
        x, given, *bias = main.inputs
        channels_first = type(main.op).__name__ == "Convolution"
        rows, terms = matrix_size(given)
        op = SparseLinear(config.library, x.type.dtype, rows, terms, channels_first, config.algorithm)
        weight = weights(e, given, config.library)
        if config.fused:
            found = fused_after(parts.after, main.outputs[0])
            assert found is not None, f"{e.node} has nothing after it that cuSPARSELt does"
            op = replace(op, residual=bool(found.residual), activation=found.activation)
            e.call(op, (x, weight, *bias, *found.residual), (output,))
            return
        if not parts.after:
            e.call(op, (x, weight, *bias), (output,))
            return
        result = e.temporary(main.outputs[0].type.shape, x.type.dtype, "product")
        e.views[result] = View(result, features_innermost(result.type, channels_first))
        planned = plan_after(e, result, renamed(parts.after, main.outputs[0], result), (output,))
        e.call(op, (x, weight, *bias), (result,))
        emit_after(e, planned)


def has_two_four(e: Emission) -> bool:
    """Whether the node multiplies by 2:4 weights."""
    inner: Sequence[Node] = e.node.op.body.nodes if hasattr(e.node.op, "body") else (e.node,)
    given = [e.constant(n.inputs[1]) for n in inner if type(n.op).__name__ in (*MAINS, *INTEGER_MAINS)]
    return any(weight is not None and weight.dim() > 1 and is_two_four(weight) for weight in given)


@dataclass(frozen=True)
class Fusable:
    """What cuSPARSELt does after its sums. residual: nothing, or one value."""

    residual: tuple[Value, ...]
    activation: str


def fused_after(after: Sequence[Node], result: Value) -> Fusable | None:
    """What follows as cuSPARSELt's kernel does it; None where it cannot, and where nothing follows."""
    if not after or direct.library() is None:
        return None
    nodes, residual = list(after), tuple[Value, ...]()
    if str(nodes[0].op) == "Binary[add]":
        residual = tuple(v for v in nodes[0].inputs if v is not result)
        if len(residual) != 1 or not residual[0].type.matches(result.type):
            return None
        nodes.pop(0)
    if not nodes:
        return Fusable(residual, "none")
    activation = ACTIVATIONS.get(str(nodes[0].op))
    return Fusable(residual, activation) if activation in direct.ACTIVATIONS and len(nodes) == 1 else None


def product_of(e: Emission, *mains: str) -> Parts:
    """The node as a product with 2:4 weights. Raises Unsupported where it is none."""
    inner: Sequence[Node] = e.node.op.body.nodes if hasattr(e.node.op, "body") else (e.node,)
    if sum(type(n.op).__name__ in mains for n in inner) != 1:
        raise Unsupported("the node is not one product with weights")
    parts = parts_of(e.node, *mains)
    main, op = parts.main, parts.main.op
    weight = e.constant(main.inputs[1])
    if weight is None:
        raise Unsupported("the weights are not known when the engine is built")
    if not is_two_four(weight):
        raise Unsupported("the weights are not 2:4; torchsmith.sparsify(model) makes them so")
    if parts.before or len(parts.outputs) > 1:
        raise Unsupported("the libraries run nothing before the product, and give one output")
    if weight.dim() > 2:
        plain = set(op.stride) == {1} and op.groups == 1 and not any(map(any, op.padding))  # type: ignore[attr-defined]
        if not plain or set(weight.shape[2:]) != {1}:
            raise Unsupported("the convolution is not 1×1 with stride 1, no padding and one group; others stay dense")
    return parts


def libraries(e: Emission, parts: Parts, itemsize: int) -> list[SparseConfig]:
    """What may run it, best guess first. Raises Unsupported, with the sizes, where nothing does."""
    x = parts.main.inputs[0]
    rows, terms = matrix_size(parts.main.inputs[1])
    count = rows_of(x, parts.main)
    if byte_alignment(e.view(x), x.type.dtype) < 16:
        raise Unsupported("the rows do not start at a multiple of 16 bytes")
    fits, against = list[str](), list[str]()
    for library in (CUSPARSELT, CUTLASS):
        layout = LAYOUTS[library, itemsize]
        wanted = f"multiples of {layout.rows}, {layout.terms} and {layout.count}"
        if library == CUSPARSELT and not has_cusparselt():
            against.append("this PyTorch was built without cuSPARSELt")
        elif library == CUTLASS and not has_cutlass():
            against.append("PyTorch's CUTLASS kernels with 2:4 weights run on GPUs of compute capability 8, and there is none here")
        elif rows % layout.rows or terms % layout.terms or not divisible(count, layout.count):
            against.append(f"{library} takes weights N × K and rows M of {wanted}; these are {rows}, {terms} and {count}")
        else:
            fits.append(library)
    if not fits:
        raise Unsupported("; ".join(against))
    return [SparseConfig(name, i) for name in fits for i in (ALGORITHMS if name == CUSPARSELT else (0,))]


def rows_of(x: Value, main: Node) -> Dim:
    """M: everything but the features."""
    shape, axis = x.type.shape, 1 if "Convolution" in type(main.op).__name__ else x.type.rank - 1
    return product([n for i, n in enumerate(shape) if i != axis])


def matrix_size(weight: Value) -> tuple[int, int]:
    """N and K."""
    rows, terms = weight.type.shape[:2]
    assert isinstance(rows, int) and isinstance(terms, int), f"{weight} is a constant"
    return rows, terms


def weights(e: Emission, weight: Value, library: str) -> Value:
    """The weights as engines hold them; one constant for each library, which lays it out in its own way."""

    def make(tensor: Tensor) -> Tensor:
        return packed(tensor.flatten(1))

    return e.packed(weight, f"two_four.{library}", make)


TEMPLATE = SparseTemplate()
