"""Engines built by NVIDIA TensorRT or TensorRT-RTX, where the user has one of them."""

from torchsmith.backends.tensorrt.backend import BACKEND

__all__ = ["BACKEND"]
