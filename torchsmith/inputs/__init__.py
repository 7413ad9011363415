"""What a user says about a model's inputs and its device, and the concrete call that is made of it."""

from torchsmith.inputs.device import Device
from torchsmith.inputs.examples import ExampleInputs, resolve
from torchsmith.inputs.input import Axis, Input

__all__ = ["Axis", "Device", "ExampleInputs", "Input", "resolve"]
