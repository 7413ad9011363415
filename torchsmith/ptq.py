"""Post-training quantization: calibrators for `torchsmith.compile(model, inputs, enabled_precisions={torch.int8}, calibrator=…)`,
and the same with torch.float8_e4m3fn.

The names are those of torch_tensorrt.ptq.
"""

from torchsmith.quantize.calibrator import CacheCalibrator, DataLoaderCalibrator
from torchsmith.quantize.thresholds import CalibrationAlgo

__all__ = ["CacheCalibrator", "CalibrationAlgo", "DataLoaderCalibrator"]
