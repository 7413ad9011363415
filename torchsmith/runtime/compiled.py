"""What `torchsmith.compile` and `torchsmith.load` return."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks as behind_all
from torch.nn.modules.module import _global_forward_pre_hooks as before_all

from torchsmith.errors import EngineMismatch
from torchsmith.runtime import engine_op  # noqa: F401 - a program with engines needs the op
from torchsmith.runtime.binding import Binder
from torchsmith.runtime.codegen import function_of
from torchsmith.runtime.engines import LoadedEngine, obtain
from torchsmith.runtime.finished import FinishedModule
from torchsmith.runtime.places import Place, concrete, moved, moved_program, unnumbered
from torchsmith.runtime.plan import Plan, TensorInput
from torchsmith.runtime.writes import written

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class CompiledModule(FinishedModule):
    """A model compiled for inference, called like the original.

    Takes the arguments of the original, by position or by name, and gives its outputs, nested in the same containers. Sizes,
    dtypes and devices are checked on every call (InvalidInput). No gradients are recorded. Threads may share a module, as
    long as the model keeps no state between calls.

    report: what became of the model, as plain data (see `torchsmith.explain`). program: the `ExportedProgram` that it runs.
    Buffers that the model writes to belong to this module, and inputs that it writes to are written to.
    missing: why its engines are not loaded, where they are for a device that is not here; it can be saved and looked at, and
    a call raises EngineMismatch. Empty otherwise.
    """

    plan: Plan
    tensors: dict[str, Tensor]
    engines: list[LoadedEngine]
    missing: str

    def __init__(
        self,
        program: ExportedProgram,
        report: Mapping[str, Any],
        signature: inspect.Signature | None = None,
        place: Place | None = None,
    ) -> None:
        """program: one whose engines are calls of `torchsmith::execute_engine`. signature: the original `forward`'s.

        place: where it is to run, if not where the program's tensors are. A program that moves is moved in place.
        Raises CaptureError for a program that no module can be made of, EngineMismatch for engines that do not run here.
        """
        from torchsmith.runtime.extract import plan_of, tensors_of

        place, plan = place or Place(), plan_of(program, signature)
        if place.device is not None:
            plan = moved(plan, place.device)
            if not place.missing:
                program = moved_program(program, place.device, [call.constant for call in plan.engine_calls])
        tensors = tensors_of(program)
        own = {name: tensors[name].detach().clone() for name in written(plan)}
        self._set_up(plan, {**tensors, **own}, report, lambda: _with_tensors(program, own), False, place.missing)

    @classmethod
    def from_plan(
        cls,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        report: Mapping[str, Any],
        program: Callable[[], ExportedProgram],
        missing: str = "",
    ) -> CompiledModule:
        """The same from parts that were checked before. tensors: engines among them. program: makes it when it is asked for,
        where the plan is. missing: why the engines cannot be loaded here."""
        module = cls.__new__(cls)
        module._set_up(plan, tensors, report, program, True, missing)
        return module

    def _set_up(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        report: Mapping[str, Any],
        program: Callable[[], ExportedProgram],
        verified: bool,
        missing: str,
    ) -> None:
        super().__init__()
        self.report, self.missing = dict(report), missing
        self.plan = plan if missing or not unnumbered(plan) else moved(plan, concrete(torch.device("cuda")))
        self.tensors = {name: tensors[name].detach() for name in plan.tensors}
        calls = [] if missing else self.plan.engine_calls
        self.engines = [obtain(call.spec, tensors[call.constant], call.device, verified=verified) for call in calls]
        self._program = program
        self._bind_plan()

    def _bind_plan(self) -> None:
        self._binder = Binder(self.plan)
        self._direct = self._binder.direct
        if self.missing:
            self._run, self.source = self._refuse, ""
        else:
            self._run, self.source = function_of(self.plan, self.tensors, self.engines)

    def _refuse(self, *_: Any) -> NoReturn:
        raise EngineMismatch(f"the module is {self.missing}; save it with torchsmith.save, and load it on a machine that has one")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, by a shorter way than nn.Module's, which takes longer than all checks, where no hook asks for more."""
        if kwargs or len(args) != self._direct or self._forward_pre_hooks or self._forward_hooks or before_all or behind_all:
            return super().__call__(*args, **kwargs)
        return self._run(*args)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and len(args) == self._direct:
            return self._run(*args)
        return self._run(*self._binder.leaves(args, kwargs))

    @property
    def program(self) -> ExportedProgram:
        """The program with its engines, for torch.export's tools. After `load` it is made on first use."""
        program = self._program()
        self._program = lambda: program
        return program

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        devices = [i.device for i in self.plan.inputs if isinstance(i, TensorInput)] + [c.device for c in self.plan.engine_calls]
        return devices[0] if devices else torch.device("cpu")

    def __repr__(self) -> str:
        backends: dict[str, int] = {}
        for call in self.plan.engine_calls:
            backends[call.spec.backend] = backends.get(call.spec.backend, 0) + 1
        engines = ", ".join(f"{count} {name} engine{'s' * (count > 1)}" for name, count in backends.items()) or "no engine"
        where = self.missing or f"on {self.device}"
        return f"CompiledModule({engines}, {len(self.plan.torch_calls)} ops in PyTorch, {where})"

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # of overloads
        """The tensors that stay in PyTorch, by their names in the original; those inside engines are not among them."""
        prefix = str(kwargs.get("prefix", args[1] if len(args) > 1 else ""))
        destination: dict[str, Any] = kwargs.get("destination") or (args[0] if args else {})
        destination.update({prefix + name: tensor for name, tensor in self.tensors.items()})
        return destination

    def __copy__(self) -> CompiledModule:
        return self._twin(self.tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        """A module with its own buffers, and the same engines."""
        return self._twin({name: tensor.clone() if name in written(self.plan) else tensor for name, tensor in self.tensors.items()})

    def _twin(self, tensors: dict[str, Tensor]) -> CompiledModule:
        twin = type(self).__new__(type(self))
        FinishedModule.__init__(twin)
        twin.report, twin.plan, twin.tensors, twin.engines = copy.deepcopy(self.report), self.plan, tensors, self.engines
        twin.missing = self.missing
        own = {name: tensors[name] for name in written(self.plan)}
        twin._program = lambda: _with_tensors(self.program, own)
        twin._bind_plan()
        return twin


def _with_tensors(program: ExportedProgram, own: Mapping[str, Tensor]) -> ExportedProgram:
    """The program with these buffers and constants in the place of its own, which stay with the model they came from."""
    if not own:
        return program
    program = copy.copy(program)
    program._state_dict = {name: own.get(name, value) for name, value in program.state_dict.items()}
    program._constants = {name: own.get(name, value) for name, value in program.constants.items()}
    return program
