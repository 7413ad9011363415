"""The first stage: whatever kind of model the user has, as an exported program."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from torchsmith.capture import diagnose, masks
from torchsmith.capture.conditions import are_met
from torchsmith.capture.fits import misfit
from torchsmith.capture.private import device_of, private_copy
from torchsmith.capture.ranges import check_ranges, fixed_ranges
from torchsmith.capture.smallest import check_smallest
from torchsmith.capture.torchscript import Scripted, has_scripts, replace_scripts
from torchsmith.capture.training import check_inference
from torchsmith.config import CaptureConfig
from torchsmith.errors import InvalidInput
from torchsmith.inputs import ExampleInputs, resolve

_LOCK = threading.Lock()  # export patches globals of torch's; one at a time


@dataclass(frozen=True)
class Captured:
    """A model as an exported program, in torch.export's own dialect and not yet decomposed.

    program: not to be changed; it may be the user's own, and its parameters, buffers and constants are the user's tensors.
    inputs: what it was traced with; None for an ExportedProgram that came without. signature: the model's `forward`'s, where
    it has one.
    """

    program: ExportedProgram
    inputs: ExampleInputs | None = None
    signature: inspect.Signature | None = None

    @property
    def device(self) -> torch.device:
        """Where the program's tensors are: the first parameter's, buffer's or input's device; the CPU where it has none."""
        inputs = [node.meta.get("val") for node in self.program.graph.nodes if node.op == "placeholder"]
        tensors = (
            t for t in (*self.program.state_dict.values(), *self.program.constants.values(), *inputs) if isinstance(t, torch.Tensor)
        )
        return next((t.device for t in tensors), torch.device("cpu"))


def capture(module: Any, inputs: ExampleInputs | None = None, config: CaptureConfig | None = None) -> Captured:
    """Turn a model into an exported program, without changing the model.

    module: an `nn.Module`, a `GraphModule`, a `ScriptModule` (traced, scripted, loaded or frozen), or an `ExportedProgram`,
    which needs no inputs. inputs: from `torchsmith.inputs.resolve`; examples that Inputs describe are made on the module's
    device, the user's own tensors must be there already.

    Precondition: the model is in eval mode wherever that matters. State that it keeps in plain attributes, unlike that in
    buffers, stays what it is at this moment; a warning says so where the model writes to it.

    Raises InvalidInput where the model does not take these inputs, and CaptureError where it is in training mode or cannot be
    exported; both name the model's own line. Source: torch.export.
    """
    config = config or CaptureConfig()
    inputs = inputs or resolve()
    if isinstance(module, ExportedProgram):
        return _captured_already(module, inputs)
    module = _accepted(module)
    inputs = inputs.on(device_of(module))
    traced = traceable(module)
    signature = diagnose.check_call(module, traced, inputs)
    with fixed_ranges(traced) as traceable_now:
        program = export(traceable_now, inputs, config.strict and not isinstance(module, torch.jit.ScriptModule), module)
    check_inference(program, traced.training)
    check_ranges(program)
    return Captured(program, inputs, signature)


def traceable(module: nn.Module) -> nn.Module:
    """A module that torch.export can run in the place of this one; it shares the tensors and nothing else."""
    if isinstance(module, torch.jit.ScriptModule):
        return Scripted.of(module).ts_lift()
    return replace_scripts(private_copy(module))


def export(module: nn.Module, inputs: ExampleInputs, strict: bool, original: nn.Module) -> ExportedProgram:
    """Run torch.export. Where dimensions that came from ranges must be equal, tie them and run it again; where a size must not
    be 1, trace it as one of at least 2, and see whether the program does at 1 what the model does; where it cannot prove what
    the model needs of sizes, see whether all of them have it.

    module: what is traced. original: the user's, for messages. Raises InvalidInput or CaptureError.
    """
    ties: dict[str, Any] = {}

    def run(asserting: bool) -> ExportedProgram:
        shapes = inputs.dynamic_shapes(module.forward, ties)
        with _LOCK, _quiet(original), _settings(inputs.is_dynamic, has_scripts(module)), torch.no_grad():
            return torch.export.export(
                module, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=strict,
                prefer_deferred_runtime_asserts_over_guards=asserting,
            )  # fmt: skip

    while True:
        try:
            program = run(asserting=False)
        except Exception as error:  # the model's own code may raise anything; it becomes the cause of what is raised
            if interrupted(error):
                raise KeyboardInterrupt from error
            found = diagnose.ties(error, inputs, ties) or diagnose.above_one(error, inputs, ties)
            if found:
                ties = found
                continue
            asserted = _asserted(run) if diagnose.is_of_sizes(error) and not strict else None
            if asserted is None:
                raise diagnose.told(error, original, inputs) from error
            program = asserted
        found = ties
        for pair in masks.pairs(program, inputs):  # one that cannot be tied leaves the others
            found = diagnose.tied([pair], inputs, found) or found
        if found is ties:
            check_smallest(program, module, inputs, ties)
            return program
        ties = found


def _asserted(run: Callable[[bool], ExportedProgram]) -> ExportedProgram | None:
    """The program with its conditions on sizes as assertions, if all sizes meet them; None if not, or if it cannot be had so."""
    try:
        program = run(True)
    except Exception as error:  # as above; the first error is told
        if interrupted(error):
            raise KeyboardInterrupt from error
        return None
    return program if are_met(program) else None


def interrupted(error: BaseException | None) -> bool:
    """Whether the user interrupted what failed: PyTorch's cleaning up may stumble over that, and raise something else."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or interrupted(error.__context__))


@contextlib.contextmanager
def _settings(dynamic: bool, scripted: bool) -> Iterator[None]:
    """torch's settings for the time of one export."""
    import torch.fx.experimental._config as symbolic
    from torch.fx.traceback import preserve_node_meta

    with contextlib.ExitStack() as stack:
        if dynamic:
            # Without it torch takes a dynamic size for at least 2, and drops `if x.shape[0] == 1` though 1 is in range.
            stack.enter_context(symbolic.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        if scripted:  # lets converted TorchScript say which of its lines a node comes from
            stack.enter_context(preserve_node_meta())
        yield


@contextlib.contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Keep back torch's running commentary: what goes wrong is raised, in a sentence."""
    names = ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes", "export._trace")
    loggers = [logging.getLogger(f"torch.{name}") for name in names]
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(_WithoutGraphs(sys.stderr)):
        warnings.simplefilter("always")
        for logger in loggers:
            logger.addFilter(_nothing)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_nothing)
    for warning in caught:
        if "assigned during export" in str(warning.message):
            _warn_of_state(str(warning.message), module)


class _WithoutGraphs(io.TextIOBase):
    """Standard error without the unfinished graph that torch prints there when a size depends on data."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.skipped = stream, False

    def write(self, text: str) -> int:
        end_of_skipped = self.skipped and text == "\n"
        self.skipped = "def forward(self" in text
        if not (self.skipped or end_of_skipped):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _warn_of_state(message: str, module: nn.Module) -> None:
    """Say which attributes carry state from call to call: those that the model overwrites, unlike caches that it fills."""
    names = re.findall(r"self\.([\w.]+)(?=[,\s])", message.partition(" assigned")[0])
    state = []
    for name in names:
        owner, _, attribute = name.rpartition(".")
        with contextlib.suppress(AttributeError):
            if isinstance(vars(module.get_submodule(owner)).get(attribute), torch.Tensor):
                state.append(f"self.{name}")
    if state:
        warnings.warn(
            f"{type(module).__name__} overwrites {', '.join(state)} at each call; the compiled model reads there what it was when "
            "compiled. Register it as a buffer, and change it in place, for the compiled model to carry it from call to call",
            stacklevel=5,
        )


def _accepted(module: Any) -> nn.Module:
    """The module itself, out of its torch.compile wrapper. Raises InvalidInput for what is none."""
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, nn.Module):
        return module
    kind = type(module).__name__
    advice = "wrap it in the forward of an nn.Module" if callable(module) else "pass the model itself"
    raise InvalidInput(f"compile() takes an nn.Module, ExportedProgram, GraphModule or ScriptModule, and got a {kind}; {advice}")


def _captured_already(program: ExportedProgram, inputs: ExampleInputs) -> Captured:
    """The user's own exported program. Raises InvalidInput where inputs were given that it does not take."""
    check_inference(program, training=True)
    check_ranges(program)
    given = inputs.args or inputs.kwargs
    if given:
        for field in ("min", "opt", "max"):
            if reason := misfit(program, *inputs.at(field)):
                raise InvalidInput(
                    f"the exported program does not take these inputs: {reason}; leave `inputs` out, or export it for them"
                )
    return Captured(program, inputs if given else None)
