"""The exported program inside a package, made only when it is asked for.

`torch.export.load` evaluates texts of the file: sizes go through sympy's parser, which runs Python, names become generated
code, ops are looked up by attribute, guards are compiled. So every text is checked here first, and what only serves
debugging is left out.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchsmith.errors import PackageError
from torchsmith.package.archive import Archive
from torchsmith.package.plans import op_named
from torchsmith.runtime.control import HIGHER_ORDER, SIZES
from torchsmith.runtime.structure import Structure
from torchsmith.runtime.tensors import view_of

_MODEL = "models/model.json"
_NAME = re.compile(r"[A-Za-z_][\w.]*")  # of nodes, parameters and the like; dots stand in parameters' names
_PATH = re.compile(r"\w+(\.\w+)*")  # of modules and their tensors, such as 0.weight
_SYMBOL = re.compile(r"[a-z]{1,3}\d+")
# The calls in a size, as sympy writes it.
_EXPRESSIONS = re.compile(
    "Symbol|Integer|Float|Rational|Mul|Add|Pow|Max|Min|Mod|floor|ceiling|Abs|Equality|Unequality|StrictLessThan|LessThan"
    "|StrictGreaterThan|GreaterThan|And|Or|Not|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv"
    "|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt"
    "|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_EMPTIED: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
_FREE_TEXT = {"as_string", "torch_version", "class_fqn"}  # values that stay texts
_SIZE_TARGETS = {name.replace("operator.", "_operator.") for name in SIZES}


def program_of(archive: Archive, tensors: Mapping[str, Tensor]) -> ExportedProgram:
    """The program, with `tensors` for its parameters, buffers and constants of those names.

    Raises PackageError for a program that no `torch.export.save` wrote.
    """
    try:
        model = _checked(archive.json(_MODEL), "")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise PackageError(f"{archive.path}: the program in it cannot be read ({error}); save the module again") from error
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as copy:
        for name, data in archive.entries.items():
            copy.writestr(f"archive/{name}", json.dumps(model) if name == _MODEL else bytes(view_of(data)))
    file.seek(0)
    program = torch.export.load(file)
    for table in (program.state_dict, program.constants):
        for name in tensors.keys() & table.keys():
            if isinstance(table[name], torch.nn.Parameter):
                table[name].data = tensors[name]
            else:
                table[name] = tensors[name]
    return program


def _checked(value: Any, key: str) -> Any:
    """The same data without what only serves debugging. Raises PackageError for a text that is not what its place asks for."""
    if isinstance(value, dict):
        if any(not isinstance(name, str) or not re.fullmatch(r"[\w.*+/%() -]*", name) for name in value):
            raise PackageError(f"the program has {sorted(value)[:3]} for names; it is not what torch.export.save writes")
        return {name: _EMPTIED[name] if name in _EMPTIED else _checked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, key) for item in value]
    if isinstance(value, str) and key not in _FREE_TEXT and not _fits(value, key):
        raise PackageError(f"the program has {value[:80]!r} for {key!r}; it is not what torch.export.save writes")
    return value


def _fits(text: str, key: str) -> bool:
    if key == "expr_str":
        return _is_expression(text)
    if key in ("target", "as_operator"):
        return _is_target(text)
    if key == "as_float":
        return text in ("Infinity", "-Infinity", "NaN")
    if key in ("in_spec", "out_spec"):
        return _is_treespec(text)
    if key in ("fqn", "parameter_name", "buffer_name", "tensor_constant_name"):
        return not text or (_PATH.fullmatch(text) is not None and "__" not in text)
    return not text or (_NAME.fullmatch(text) is not None and not keyword.iskeyword(text) and "__" not in text)


def _is_target(text: str) -> bool:
    if text in _SIZE_TARGETS or text.removeprefix("torch.ops.higher_order.") in HIGHER_ORDER:
        return True
    match = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", text)
    return match is not None and op_named("{}::{}.{}".format(*match.groups())) is not None


def _is_treespec(text: str) -> bool:
    if not text:
        return True
    protocol, tree = json.loads(text)
    return protocol == 1 and _is_tree(tree)


def _is_tree(tree: dict[str, Any]) -> bool:
    """A node of torch's serialized pytrees, whose class this process knows and whose context names nothing to import."""
    if tree["type"] is not None:
        context = tree["context"]
        if "__enum__" in str(context) or "default_factory_module" in str(context):
            return False
        Structure.from_json([tree["type"], None, []] if tree["type"] != "collections.namedtuple" else [tree["type"], context, []])
    return all(_is_tree(child) for child in tree["children_spec"])


def _is_expression(text: str) -> bool:
    try:
        return len(text) < 10_000 and _is_expression_tree(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        return False


def _is_expression_tree(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, bool)
    if isinstance(node, ast.Name):
        return node.id in ("true", "false") or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _is_expression_tree(node.operand)
    if isinstance(node, ast.BinOp):
        simple = isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod))
        return simple and _is_expression_tree(node.left) and _is_expression_tree(node.right)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not _EXPRESSIONS.fullmatch(node.func.id):
        return False
    args, keywords = list(node.args), node.keywords
    if node.func.id in ("Symbol", "Float") and args and isinstance(args[0], ast.Constant) and isinstance(args[0].value, str):
        pattern = _SYMBOL if node.func.id == "Symbol" else re.compile(r"-?\d+(\.\d*)?(e-?\d+)?")
        if not pattern.fullmatch(args.pop(0).value):  # type: ignore[attr-defined]
            return False
    return all(map(_is_expression_tree, args)) and all(
        isinstance(k.value, ast.Constant) and not isinstance(k.value.value, str) for k in keywords
    )
