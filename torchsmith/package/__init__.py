"""Compiled modules as files."""

from torchsmith.package.load import load
from torchsmith.package.save import save

__all__ = ["load", "save"]
