"""From any kind of model to an exported program, without touching the model."""

from torchsmith.capture.export import Captured, capture

__all__ = ["Captured", "capture"]
