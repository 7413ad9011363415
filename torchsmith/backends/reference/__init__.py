"""The reference backend: every op's own meaning in PyTorch, on any device. The oracle, and what a new op runs on first."""

from torchsmith.backends.reference.backend import BACKEND

__all__ = ["BACKEND"]
