"""The openvino backend: our IR emitted op by op, run by OpenVINO's CPU engine. The default on CPUs."""

from torchsmith.backends.openvino.backend import BACKEND

__all__ = ["BACKEND"]
