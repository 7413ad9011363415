"""What masked loads of bytes give where they load nothing, in the machine code: the interpreter has no words to pack bytes into."""

from __future__ import annotations

import re

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchsmith.backends.cuda.kernels.fill import filling


@triton.jit
def copy(x, y, n, VALUE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 1024)
    tl.store(y + i, tl.load(x + i, mask=i < 16 * n, other=filling(i, VALUE, x.dtype.element_ty)))


@pytest.mark.parametrize(
    ("dtype", "value"), [("i8", 0), ("i8", 5), ("i8", -1), ("i8", -128), ("u8", 128), ("u8", 200), ("u8", 255)]
)
def test_every_byte_of_a_word_is_filled(dtype: str, value: int) -> None:
    signature = {"x": f"*{dtype}", "y": f"*{dtype}", "n": "i32", "VALUE": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(2)}
    source = ASTSource(fn=copy, signature=signature, constexprs={"VALUE": value}, attrs=aligned)
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
    constants = {int(found, 0) & 0xFFFFFFFF for found in re.findall(r"mov\.[bu]32\s+%r\d+, (-?(?:0x)?[0-9a-f]+);", text)}
    assert int.from_bytes(bytes([value % 256] * 4), "little") in constants, text
