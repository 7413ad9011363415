"""Where a module's engines run, which need not be where the model was, nor on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload

from torchsmith.errors import BackendUnavailable, InvalidOption
from torchsmith.runtime.control import run_autocast
from torchsmith.runtime.plan import Block, Call, EngineCall, Plan, TensorInput

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchsmith.target import Target


@dataclass(frozen=True)
class Place:
    """device: of the engines, and of everything that stays in PyTorch; None where it stays where it was captured.

    missing: why it cannot run in this process, a sentence without its end; empty where it can.
    """

    device: torch.device | None = None
    missing: str = ""


def place_of(target: Target, captured: torch.device, asked: torch.device | None) -> Place:
    """Where engines for a target go. captured: the model's device. asked: the one that the user named.

    Raises InvalidOption where the user named a device of another kind than the target.
    """
    if asked is not None and asked.type != target.device:
        raise InvalidOption(f"device={str(asked)!r} and target={target.arch!r} do not fit each other; give one of them")
    why = missing(target)
    if captured.type == target.device and (asked is None or asked == captured or asked.index is None):
        return Place(None, why)
    device = asked or torch.device(target.device)
    return Place(device if why else concrete(device), why)


def stays(place: Place, why: Exception) -> None:
    """Raises InvalidOption where a module that is compiled in parts would have to move, which its TorchScript cannot."""
    if place.device is not None:
        raise InvalidOption(
            f"the model is compiled in parts, because {why}; TorchScript runs the rest where the model is, so move it to "
            f"{place.device} first, or leave out target and device"
        )


def missing(target: Target) -> str:
    """Why engines for the target do not run on this machine; empty where they do."""
    from torchsmith.backends import target_of

    try:
        here = target_of(target.device)
    except BackendUnavailable:
        return f"built for {target}, and this machine has no such device"
    return "" if target.runs_on(here) else f"built for {target}, and this machine has {here}"


def concrete(device: torch.device) -> torch.device:
    """The device with its number: tensors have one, and engines stay on the one that they were loaded on."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def moved(plan: Plan, device: torch.device) -> Plan:
    """The plan with its inputs, its engines and whatever PyTorch makes on `device`."""
    inputs = tuple(dataclasses.replace(i, device=device) if isinstance(i, TensorInput) else i for i in plan.inputs)
    return dataclasses.replace(plan, inputs=inputs, body=_block(plan.body, device))


def unnumbered(plan: Plan) -> bool:
    """Whether the plan is for any GPU, as plans are that were built where there is none."""
    devices = [i.device for i in plan.inputs if isinstance(i, TensorInput)] + [c.device for c in plan.engine_calls]
    return any(device.type == "cuda" and device.index is None for device in devices)


def _block(block: Block, device: torch.device) -> Block:
    return dataclasses.replace(block, steps=tuple(_step(step, device) for step in block.steps))


def _step(step: Call | EngineCall, device: torch.device) -> Call | EngineCall:
    if isinstance(step, EngineCall):
        return dataclasses.replace(step, device=device)
    args = tuple(_value(arg, device) for arg in step.args)
    kwargs = {name: _value(arg, device) for name, arg in step.kwargs.items()}
    if _makes_tensors(step.target) and kwargs.get("device") is None:
        kwargs["device"] = device
    if step.target is run_autocast:
        args = (device.type, *args[1:])
    return dataclasses.replace(step, args=args, kwargs=kwargs)


def _value(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    if isinstance(value, Block):
        return _block(value, device)
    if isinstance(value, (list, tuple)):
        return type(value)(_value(item, device) for item in value)
    return value


def _makes_tensors(target: Callable[..., Any]) -> bool:
    """Whether an op makes a tensor of none, on the CPU unless it is told where."""
    if not isinstance(target, OpOverload):
        return False
    arguments = target._schema.arguments
    return any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)


def moved_program(program: ExportedProgram, device: torch.device, engines: Sequence[str]) -> ExportedProgram:
    """The program on `device`, in place. engines: names of constants that stay where they are, as they cost no GPU memory there."""
    from torch.export.passes import move_to_device_pass

    bytes_of = {name: program.constants[name] for name in engines}
    program = move_to_device_pass(program, device)
    program.constants.update(bytes_of)
    return program
