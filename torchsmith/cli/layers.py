"""What `torchsmith inspect` shows of an engine of the tensorrt backend: the layers that TensorRT was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchsmith.cli import show

if TYPE_CHECKING:
    from torchsmith.backends.tensorrt.engine import Engine
    from torchsmith.package.archive import Archive
    from torchsmith.runtime.plan import Plan


def engines(archive: Archive, plan: Plan) -> list[Engine | None]:
    """One for each engine, in order; None of those that other backends made. TensorRT need not be installed."""
    from torchsmith.backends.tensorrt.engine import parse
    from torchsmith.runtime.tensors import to_bytes

    found: list[Engine | None] = []
    for call in plan.engine_calls:
        if call.spec.backend == "tensorrt":
            found.append(parse(to_bytes(archive.entries[archive.header["tensors"][call.constant]["entry"]])))
        else:
            found.append(None)
    return found


def print_layers(number: int, engine: Engine) -> None:
    """A line a layer, in the order of the network."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"engine {number}: {len(engine.layers)} layers before {engine.library} {engine.version} fused them"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("layer", "output"):
        made.add_column(name, no_wrap=True)
    made.add_column("of", overflow="fold")
    for layer in engine.layers:
        made.add_row(*map(Text, (layer.kind, ", ".join(layer.outputs), layer.name.rpartition(" [")[0])))
    show.stdout().print(made)
