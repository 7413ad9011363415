"""From any kind of model to an exported program, without touching the model."""

from torchsmith.capture.export import Captured, capture
from torchsmith.capture.script_code import NotConvertible
from torchsmith.capture.split import Split, split

__all__ = ["Captured", "NotConvertible", "Split", "capture", "split"]
