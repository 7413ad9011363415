"""What an export that failed says to the user: what, where, why, and what to do."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from torchsmith.capture.script_code import NotConvertible, last_line
from torchsmith.capture.source import error_line, raised_here
from torchsmith.errors import CaptureError, InvalidInput, TorchsmithError
from torchsmith.inputs import ExampleInputs

_NOT_ONE = re.compile(r"generated guard (?:(L\[.*?\.size\(\)\[\d+\]) != 1|1 != (L\[.*?\.size\(\)\[\d+\]))")
_SIZE = re.compile(r"(\w+) = (L\[.*?\.size\(\)\[\d+\])")  # `b = L['x'].size()[0]`, as torch names a dimension


def check_call(module: nn.Module, traced: nn.Module, inputs: ExampleInputs) -> inspect.Signature | None:
    """The signature of `forward`, None where it has none. Raises InvalidInput where the inputs do not match it."""
    try:
        signature = inspect.signature(traced.forward)
    except (TypeError, ValueError):  # a forward without a signature: let the call itself tell
        return None
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        names = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
        raise InvalidInput(
            f"{_name(module)}.forward({names}) does not take these inputs: {error}; "
            "give one input per argument, those by name in kwarg_inputs"
        ) from None
    return signature


def ties(error: Exception, inputs: ExampleInputs, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Dimensions to put in the place of others, where all that failed is that ranges turned out to be equal sizes.

    Dims that the user made are never put aside for another one. Returns None where there is more to it.
    """
    made = _made(inputs)
    fixes = [fix.split(" = ", 1) for fix in _suggestions(str(error))]
    pairs = [fix for fix in fixes if not (fix[1].startswith("Dim(") and fix[0] in made)]  # ranges follow from what is tied
    if not pairs or not all(other.isidentifier() for _, other in pairs):
        return None
    return tied([(one, other) for one, other in pairs], inputs, known)


def tied(pairs: Iterable[tuple[str, str]], inputs: ExampleInputs, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same for pairs of names; None where there is nothing new in them, or one of them cannot be tied."""
    from torch.export import Dim

    made = _made(inputs)
    everything = {getattr(d, "__name__", ""): d for own in inputs.dims for d in own.values()}
    found = dict(known)
    for one, other in pairs:
        if one not in made:
            one, other = other, one
        if one not in made or other not in everything:
            return None
        a, b = found.get(one, everything[one]), found.get(other, everything[other])
        both = b
        if (a.min, a.max) != (b.min, b.max):
            low, high = max(a.min, b.min), min(a.max, b.max)
            if other not in made or not low < high:
                return None
            both = Dim(other, min=low, max=high)
        for name in everything:
            if found.get(name, everything[name]) in (a, b):
                found[name] = both
    return found if found != dict(known) else None


def above_one(error: Exception, inputs: ExampleInputs, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Dimensions of at least 2 to put in the place of those that the model is said not to take at 1; None where there are none.

    Models ask whether a size is 1 before they do what makes no difference then, such as expanding.
    """
    from torch.export import Dim

    everything = {getattr(d, "__name__", ""): d for own in inputs.dims for d in own.values()}
    expressions = {d.root.__name__ for d in everything.values() if hasattr(d, "root")}
    sources = {source: name for name, source in _SIZE.findall(str(error))}
    found = dict(known)
    for one, other in _NOT_ONE.findall(str(error)):
        name = sources.get(one or other, "")
        traced = next((d for d in (found.get(n, own) for n, own in everything.items()) if getattr(d, "__name__", "") == name), None)
        if traced is None or name in expressions or hasattr(traced, "root") or traced.min > 1 or (traced.max or 3) < 3:
            continue
        raised = Dim(name, min=2, max=traced.max)
        for own, dim in everything.items():
            if found.get(own, dim) is traced:
                found[own] = raised
    return found if found != dict(known) else None


def told(error: Exception, module: nn.Module, inputs: ExampleInputs) -> TorchsmithError:
    """The sentence for an export that raised `error`."""
    if isinstance(error, TorchsmithError):
        return error
    if isinstance(error, (NameError, AttributeError)) and raised_here(error):
        raise error  # a mistake of ours, which must not look like one of the model's
    text = str(error)
    if is_of_sizes(error):
        return CaptureError(_sizes(text, inputs))
    at = _at(error)
    if not at and isinstance(module, torch.jit.ScriptModule) and (line := last_line()):
        at = f" ({line})"
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        kind = NotConvertible if isinstance(module, torch.jit.ScriptModule) else CaptureError
        return kind(
            f"{_name(module)} cannot be exported: its control flow, or a size in it, depends on the values of a tensor{at}. "
            "Write it with torch.where or torch.cond, or compile the submodules around it one by one"
        )
    own = _run(module, inputs)
    if own is not None:
        return InvalidInput(
            f"{_name(module)} fails on these inputs: {_first_line(own)}{_at(own)}. "
            f"The inputs were {_described(inputs)}{_hint(module, inputs)}"
        )
    return CaptureError(
        f"{_name(module)} runs, but cannot be exported: {_first_line(error)}{at}. "
        f"Change that line, or compile the submodules around it one by one{_training(module)}"
    )


def is_of_sizes(error: Exception) -> bool:
    """Whether torch.export says that the model does not take all the sizes that it was told of."""
    return "Constraints violated" in str(error)


def _at(error: BaseException) -> str:
    line = error_line(error)
    return f" ({line})" if line else ""


def _sizes(text: str, inputs: ExampleInputs) -> str:
    """A violated constraint on dynamic dimensions, in words."""
    names = {source: name for name, source in _SIZE.findall(text)}
    problems: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("- "):
            problem = _problem(line.removeprefix("- "))
            for source, name in names.items():
                problem = problem.replace(source, name)
            if problem not in problems:
                problems.append(problem)
    places = []
    for place, own in zip(inputs.places, inputs.dims, strict=True):
        for i, dim in own.items():
            name = getattr(dim, "__name__", "")
            if name and re.search(rf"\b{re.escape(name)}\b", text):
                places.append(f"{name} is dimension {i} of {place}")
    fixes = [f for f in _suggestions(text) if f not in problems]
    advice = f", for example {', '.join(fixes)}" if fixes else ""
    if any(re.fullmatch(r"\w+ = .*[a-z]\w*.*", p) for p in problems):
        advice += "; one torch.export.Dim, or an expression of it such as 2*dim, ties two dimensions"
    return (
        f"the model works for fewer sizes than its inputs allow; it needs {' and '.join(problems[:3])}"
        f"{', where ' + ', '.join(places[:4]) if places else ''}. Change the inputs accordingly{advice}"
    )


_PROBLEMS = (
    (re.compile(r"You marked (.*) as dynamic but your code specialized it to be a constant \((\d+)\)"), r"\1 = \2"),
    (re.compile(r"The values of (\w+) = .* and (\w+) = .* must always be equal"), r"\1 = \2"),
    (re.compile(r"must always be related to the values of .* by (.*)"), r"\1"),
    (re.compile(r"satisfy the generated guard (.*)"), r"\1"),
)


def _problem(line: str) -> str:
    """The condition in one line of torch's list."""
    for pattern, condition in _PROBLEMS:
        if match := pattern.search(line):
            return match.expand(condition).rstrip(".")
    return line


def _suggestions(text: str) -> list[str]:
    """torch's suggested fixes, each `name = expression`."""
    fixes = text.partition("Suggested fixes:")[2].partition("\n\n")[0]
    return [line.strip() for line in fixes.splitlines() if " = " in line]


def _made(inputs: ExampleInputs) -> set[str]:
    """The names of dimensions that were made from ranges, not by the user."""
    return {getattr(d, "__name__", "") for own in inputs.dims for d in own.values()} - set(inputs.roots)


def _run(module: nn.Module, inputs: ExampleInputs) -> Exception | None:
    """What the model itself raises on these inputs, tried on a copy; None where it runs, or cannot be copied."""
    try:
        tried = copy.deepcopy(module)
    except (TypeError, RuntimeError, NotImplementedError):
        return None
    try:
        with torch.no_grad():
            tried(*copy.deepcopy(inputs.args), **copy.deepcopy(inputs.kwargs))
    except Exception as error:  # the model's own code may raise anything; it is told to the user
        return error
    return None


def _described(inputs: ExampleInputs) -> str:
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    return ", ".join(f"{place}: {_text(leaf)}" for place, leaf in zip(inputs.places, leaves, strict=True)) or "none"


def _text(leaf: Any) -> str:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    device = "" if leaf.device.type == "cpu" else f" on {leaf.device}"
    return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}{device}"


def _hint(module: nn.Module, inputs: ExampleInputs) -> str:
    """What is likely wrong with inputs that the model does not take."""
    leaves = [t for t in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    names = set(inspect.signature(module.forward).parameters) if not isinstance(module, torch.jit.ScriptModule) else set()
    if len(inputs.args) == 1 and isinstance(inputs.args[0], dict) and inputs.args[0] and set(inputs.args[0]) <= names:
        return "; inputs[0] is a dict of argument names: pass it as kwarg_inputs"
    if leaves and len(dtypes) == 1 and dtypes.isdisjoint(t.dtype for t in leaves):
        dtype = next(iter(dtypes))
        return f"; the model's parameters are {dtype}: try Input(..., dtype={dtype})"
    unbounded = [
        a.dim for t in pytree.tree_leaves(inputs.described) for a in getattr(t, "dims", ()) if getattr(a, "max", 0) is None
    ]
    if unbounded:
        return "; a Dim without a max was tried at a small size: give it a max, or give the Input an opt_shape"
    return _training(module)


def _training(module: nn.Module) -> str:
    switching = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    odd = any(m.training and isinstance(m, switching) for m in module.modules() if not isinstance(m, torch.jit.ScriptModule))
    return "; the model is in training mode: call model.eval() first" if odd else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if "failed in the TorchScript interpreter" in lines[0]:
        lines = lines[-1:]  # TorchScript tells its own stack first
    message = lines[0].partition(". ")[0].rstrip(".:")
    return message if type(error) in (RuntimeError, AssertionError) else f"{type(error).__name__}: {message}"


def _name(module: nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))
