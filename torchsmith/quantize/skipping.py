"""What `skip_layers` names: modules by path or pattern, and everything inside them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection

from torch import fx
from torch.export import ExportedProgram

from torchsmith.errors import InvalidOption


def skipped_nodes(program: ExportedProgram, patterns: Collection[str]) -> set[fx.Node]:
    """The nodes in modules that the patterns name, those inside them included. Raises InvalidOption where one names nothing."""
    paths: dict[str, set[fx.Node]] = {}
    for node in program.graph.nodes:
        for path in _paths(node) if node.op == "call_function" else ():
            paths.setdefault(path, set()).add(node)
    found: set[fx.Node] = set()
    for pattern in patterns:
        named = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not named:
            near = difflib.get_close_matches(pattern, sorted(paths), n=3, cutoff=0.4)
            hint = f"the nearest are {', '.join(near)}" if near else "the program does not say which modules it came from"
            raise InvalidOption(f"skip_layers names {pattern!r}, and the model runs no module of that name; {hint}")
        found = found.union(*(paths[path] for path in named))
    return found


def _paths(node: fx.Node) -> list[str]:
    """The paths of the modules around a node, and the node's own name."""
    stack = node.meta.get("nn_module_stack")
    entries = list(stack.values()) if isinstance(stack, dict) else []
    modules = [str(path).removeprefix("L['self']").strip(".") for path, _ in entries]
    return [*(path for path in modules if path), node.name]
