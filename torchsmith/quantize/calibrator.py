"""What `compile(calibrator=…)` takes: data to calibrate with, how ranges are chosen, and a file to keep them in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from torchsmith.errors import InvalidOption
from torchsmith.quantize.thresholds import CalibrationAlgo

# Torch-TensorRT's is ENTROPY_CALIBRATION_2, which cuts off what models go by: of EfficientNet-Lite0's top-1 95 % stay the same
# with it and 99 % with MSE, and MiniLM's embeddings end at a cosine of 0.24 from float32's, with MSE at 0.996. Range alone gives
# Lite0 a tenth more error than MSE. The table is python -m torchsmith.bench.accuracy's.
DEFAULT = CalibrationAlgo.MSE


class DataLoaderCalibrator:
    """Calibrates with the batches of a DataLoader, or of anything that can be iterated.

    dataloader: each item is a tensor, a tuple or list that begins with the model's inputs (labels behind them are left), or a
    dict of inputs by name. algo_type, or algo: how thresholds are chosen, MSE by default. cache_file: where ranges are written,
    as JSON. use_cache: read that file where it exists, and do not run the model. device: accepted for Torch-TensorRT's callers;
    batches are moved to where the model is.

    Raises InvalidOption. Source: torch_tensorrt.ptq.DataLoaderCalibrator.
    """

    def __init__(
        self,
        dataloader: Iterable[Any],
        algo_type: CalibrationAlgo | str | None = None,
        cache_file: str | os.PathLike[str] | None = None,
        use_cache: bool = False,
        device: Any = None,
        *,
        algo: CalibrationAlgo | str | None = None,
    ) -> None:
        if algo_type is not None and algo is not None and algo_of(algo_type) != algo_of(algo):
            raise InvalidOption(f"algo_type={algo_type} and algo={algo} are two names of one option; give one of them")
        self.dataloader = dataloader
        self.algo = algo_of(algo if algo_type is None else algo_type)
        self.cache_file = os.fspath(cache_file) if cache_file else None
        self.use_cache = use_cache
        self.device = device
        if use_cache and not self.cache_file:
            raise InvalidOption("use_cache=True needs a cache_file to read")

    def __repr__(self) -> str:
        cache = f", cache_file={self.cache_file!r}, use_cache={self.use_cache}" if self.cache_file else ""
        return f"DataLoaderCalibrator({type(self.dataloader).__name__}, {self.algo.name}{cache})"


class CacheCalibrator:
    """Takes the ranges that a calibration wrote, and needs no data.

    cache_file: from DataLoaderCalibrator, for the same model. algo_type: accepted for Torch-TensorRT's callers; the ranges are
    those of the file, whatever chose them. Source: torch_tensorrt.ptq.CacheCalibrator.
    """

    def __init__(self, cache_file: str | os.PathLike[str], algo_type: CalibrationAlgo | str | None = None) -> None:
        self.cache_file = os.fspath(cache_file)
        if algo_type is not None:
            algo_of(algo_type)

    def __repr__(self) -> str:
        return f"CacheCalibrator({self.cache_file!r})"


Calibrator = DataLoaderCalibrator | CacheCalibrator


def calibrator_of(given: Any) -> Calibrator:
    """The option's value as a calibrator: one already, the path of a cache file, or data. Raises InvalidOption."""
    if isinstance(given, (DataLoaderCalibrator, CacheCalibrator)):
        return given
    if isinstance(given, (str, os.PathLike)):
        return CacheCalibrator(given)
    if isinstance(given, Iterable):
        return DataLoaderCalibrator(given)
    hint = "; call it, and pass what it gives" if callable(given) and not isinstance(given, torch.nn.Module) else ""
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        hint = "; a data set becomes one by torch.utils.data.DataLoader(data, batch_size=…)"
    raise InvalidOption(
        f"calibrator is a {type(given).__name__}; pass a DataLoader, a list of inputs, a calibrator of torchsmith.ptq, "
        f"or the path of a calibration cache{hint}"
    )


def algo_of(given: CalibrationAlgo | str | None) -> CalibrationAlgo:
    """An algorithm by itself, its name or its value. Raises InvalidOption."""
    if given is None:
        return DEFAULT
    if isinstance(given, CalibrationAlgo):
        return given
    for algo in CalibrationAlgo:
        if isinstance(given, str) and given.lower() in (algo.name.lower(), algo.value):
            return algo
    names = ", ".join(algo.name for algo in CalibrationAlgo)
    raise InvalidOption(f"{given!r} is no calibration algorithm; torchsmith.ptq.CalibrationAlgo has {names}")
