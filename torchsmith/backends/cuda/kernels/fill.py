"""What masked loads of bytes give where they load nothing."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def filling(place, VALUE: tl.constexpr, TYPE: tl.constexpr):
    """VALUE for every element of `place`, as `other` of a masked load of TYPE, int8 or uint8; 0 also of others.

    Triton, 3.6 and 3.8 at least, takes a constant for signed as it packs it into words: of a byte whose first bit is set every
    fourth is right. It does not see that this is a constant; LLVM does, and packs it right.
    """
    if VALUE >= 0 and VALUE < 128:
        return VALUE
    else:
        return ((place * 2) & 1).to(TYPE) + VALUE
