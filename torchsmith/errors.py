"""Everything torchsmith raises. Each message says what, where, why and what to do next."""

from __future__ import annotations


class TorchsmithError(Exception):
    """Base of every error that torchsmith raises for a user's mistake or a machine's limit."""


class Unsupported(TorchsmithError):
    """A converter or a backend refuses a node; its message is the reason that `explain` shows.

    Inside the compiler this is the only exception that turns into a fallback.
    """


class InvalidOption(TorchsmithError, ValueError):
    """An option is unknown, or its value makes no sense."""


class InvalidInput(TorchsmithError, ValueError):
    """Inputs do not fit: at compile time the description of them, at run time the tensors."""


class CaptureError(TorchsmithError):
    """The model could not be turned into an exported program."""


class BackendUnavailable(TorchsmithError):
    """The backend that was asked for cannot be used on this machine."""


class BuildError(TorchsmithError):
    """A backend accepted a graph and then failed to build it."""


class BudgetExceeded(TorchsmithError):
    """No assignment of the enabled precisions keeps the accuracy budget."""


class FullCompilationRequired(TorchsmithError):
    """`require_full_compilation=True`, and some node was refused."""


class EngineMismatch(TorchsmithError):
    """An engine was built for other hardware or by another version, and cannot run here."""


class OutOfDeviceMemory(TorchsmithError, MemoryError):
    """A GPU has too little free memory for an engine's weights or activations."""


class PackageError(TorchsmithError):
    """A package file is truncated, altered, foreign or of a newer format."""


class VerificationError(TorchsmithError):
    """A stage broke the IR's rules, or changed what the model computes (VERIFY=1, VERIFY=2)."""


class InternalError(TorchsmithError):
    """A stage failed by a bug of ours. The message names a folder in which the failure can be run again."""
