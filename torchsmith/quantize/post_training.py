"""Post-training quantization: calibrate, and write what was found into the program as fake-quantize ops.

From here on such a program is the same as one of quantization-aware training.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from torchsmith.capture.ranges import check_ranges
from torchsmith.config import Config, QuantizeConfig
from torchsmith.convert import parameters_of
from torchsmith.debug.progress import progress_of
from torchsmith.errors import InvalidInput, InvalidOption
from torchsmith.lower import Lowered
from torchsmith.lower.editing import copied, settled
from torchsmith.ops.quantize import FP8
from torchsmith.quantize.abilities import ALL, Int8Abilities
from torchsmith.quantize.batches import Batch, batches_of, told_of_constants
from torchsmith.quantize.budget import Budget, budget_of
from torchsmith.quantize.budgeted import Allowed, Budgeted, Model
from torchsmith.quantize.calibration import Calibration, Range, check_writable, digest, read
from torchsmith.quantize.calibrator import CacheCalibrator, Calibrator, DataLoaderCalibrator, calibrator_of
from torchsmith.quantize.compensate import compensated, enough
from torchsmith.quantize.equalise import shares_by
from torchsmith.quantize.fitting import fitting
from torchsmith.quantize.formats import FORMATS
from torchsmith.quantize.insert import correct_biases, insert
from torchsmith.quantize.observe import Observed, Ranges
from torchsmith.quantize.placement import Placement, apart, name_apart, place
from torchsmith.quantize.precision import eight_bits, floats_of, tell_of_fp8
from torchsmith.quantize.thresholds import CalibrationAlgo, threshold
from torchsmith.quantize.without_float8 import has_float8, without_float8
from torchsmith.target import Target, this_cpu

# What is concatenated with numbers this many times as large gets a scale of its own where it is not: two bits would be lost.
_APART = 4
_MARKS = ("fake_quantize", "quantize_per", "dequantize_per", "quantize_op", "quantize_affine", "dequantize_affine")


@dataclass(frozen=True)
class Quantized:
    """A program with fake-quantize ops wherever int8 and fp8 go. calibration: what they were made from; None where they were there.

    budgeted: the search for the layers' precisions, where there is an accuracy budget. kept: by the names of nodes, why
    calibration left layers as they were. floats: the program without them, where they are a permission: calibration put them in.
    """

    program: ExportedProgram
    calibration: Calibration | None = None
    budgeted: Budgeted | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    floats: ExportedProgram | None = None

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a layer is in floats, by the names of nodes; of all that are, and of others that might have been."""
        layers = self.budgeted.model.placement.dtypes() if self.budgeted else {}
        return {**{node.name: "the accuracy budget has it so" for node in layers}, **self.kept}

    def again(self) -> Quantized:
        """As the search goes on."""
        assert self.budgeted is not None
        return replace(self, program=self.budgeted.program())

    def narrowed(self, config: Config) -> Config:
        """The config with the precisions that the accuracy budget left."""
        if self.budgeted is None:
            return config
        left = frozenset({self.budgeted.assignment.rest, *FORMATS} & {*config.quantize.enabled_precisions, torch.float32})
        return replace(config, quantize=replace(config.quantize, enabled_precisions=left))


def quantize(
    lowered: Lowered, config: QuantizeConfig, target: Target | None = None, int8: Int8Abilities = ALL,
    in_torch: Callable[[ExportedProgram], Mapping[str, str]] = lambda program: {},
) -> Quantized:  # fmt: skip
    """Insert fake-quantize ops, calibrated as the config says; a program that has them already passes through.

    Weights are symmetric, per output channel, from -127 to 127. Activations are symmetric and per tensor: from -128 to 127, or
    from 0 to 255 where nothing negative was seen. In fp8 both are symmetric, and the greatest magnitude becomes 448. Linear layers
    and attention compute in fp8 where it is enabled, and everything else that is quantized in int8. target, int8: what the engines
    are for, this CPU by default, and what they do of int8 and fp8; an accuracy budget goes by both. The user is told once where
    engines do not compute in fp8: then it is as if it were not enabled, and a program's own fp8 is left out. in_torch: why
    nodes of a program would stay in PyTorch, which gains nothing by rounding, by their names.

    Raises InvalidOption where eight bits and the calibrator do not go together, InvalidInput for unusable data or a foreign cache,
    CaptureError for fake-quantize ops with unusable ranges.
    """
    program, has_marks, budget = lowered.program, is_marked(lowered.program), budget_of(config.accuracy_budget)
    target = target or this_cpu()
    outside = in_torch(program) if config.calibrator is not None and not has_marks else {}
    config = replace(config, skip_layers=config.skip_layers | outside.keys())
    if budget is not None:
        return _budgeted(lowered, config, budget, target, int8)
    if has_marks:
        check_ranges(program)  # again: scales that the model computes from its weights are constants by now
    asked = _eight_bits_of(config)
    if config.calibrator is None:
        if asked and not has_marks:
            raise InvalidOption(
                f"enabled_precisions has {asked}, and neither is there a calibrator nor has the model fake-quantize ops; pass "
                "calibrator= with typical inputs, such as a DataLoader, or train the model quantization-aware"
            )
        return Quantized(_computable(program, target, int8))
    if not asked:
        raise InvalidOption(
            "a calibrator is for torch.int8 and torch.float8_e4m3fn; add one to enabled_precisions, or leave the calibrator out"
        )
    if has_marks:
        raise InvalidOption("the model has fake-quantize ops, which say their ranges already; leave the calibrator out")
    formats = eight_bits(config.enabled_precisions, target, int8)
    if not formats:
        asked_for = place(program, config.skip_layers, formats=(FP8,))
        why = dict.fromkeys((node.name for node in asked_for.dtypes()), f"{target} does not compute in {FP8}")
        return Quantized(program, kept={**asked_for.kept, **why})
    program = copied(program)
    placement = place(program, config.skip_layers, int8=int8, formats=formats)
    kept = {**placement.kept, **{name: f"it stays in PyTorch: {why}" for name, why in outside.items() if name in placement.kept}}
    _check_worth(placement, kept)
    calibration = int8.ranges(calibrate(program, placement, calibrator_of(config.calibrator)))
    placement = apart(placement, calibration.ranges)
    correct_biases(program, placement, calibration)
    insert(program, placement, calibration)
    program.graph.lint()
    program.graph_module.recompile()
    return Quantized(settled(program), calibration, kept=kept, floats=lowered.program)


def _check_worth(placement: Placement, kept: Mapping[str, str]) -> None:
    """Warn where nothing of the model would compute in eight bits. kept: why not, by the names of nodes."""
    if not placement.dtypes():
        why = Counter(kept.values()).most_common(1)
        reason = f"most often because {why[0][0]}" if why else "no convolution and no product has a constant weight"
        warnings.warn(f"calibration finds no layer of the model to compute in eight bits: {reason}", stacklevel=2)


def _eight_bits_of(config: QuantizeConfig) -> str:
    """The enabled precisions of eight bits, in words."""
    return " and ".join(str(dtype) for dtype in FORMATS if dtype in config.enabled_precisions)


def _computable(program: ExportedProgram, target: Target, int8: Int8Abilities) -> ExportedProgram:
    """The program without the fp8 that its training or another tool put in, where engines for the target have none."""
    if not has_float8(program) or int8.computes_fp8(target):
        return program
    tell_of_fp8(target, int8)
    return without_float8(program)


def _budgeted(lowered: Lowered, config: QuantizeConfig, budget: Budget, target: Target, int8: Int8Abilities) -> Quantized:
    """Calibrate, where int8 is enabled, and choose each layer's precision by what it loses on the calibrator's data."""
    calibrator = _with_data(config.calibrator)
    if is_marked(lowered.program):
        raise InvalidOption(
            "accuracy_budget chooses among the layers of a float model, and this one has fake-quantize ops, which say what has "
            "eight bits already; leave accuracy_budget and the calibrator out"
        )
    program, formats = copied(lowered.program), eight_bits(config.enabled_precisions, target, int8)
    placement, calibration = place(program, config.skip_layers, int8=int8, formats=formats or (torch.int8,)), None
    for layer in placement.layers:
        if (dtype := layer.node.meta["val"].dtype) != torch.float32:
            raise InvalidOption(
                f"accuracy_budget compares with the model in float32, and {layer.name} computes in {dtype}; give model.float(), "
                f"and {dtype} in enabled_precisions"
            )
    if formats:
        calibration = int8.ranges(calibrate(program, placement, calibrator))
    model = Model(program, placement, calibration, config.skip_layers, target, int8, formats or (torch.int8,))
    floats = floats_of(config.enabled_precisions, target)
    found = Budgeted(model, calibrator.dataloader, Allowed(budget, bool(formats), floats, int8.mixes_floats))
    return Quantized(found.program(), calibration, found, placement.kept)


def _with_data(given: object) -> DataLoaderCalibrator:
    """The calibrator, whose data can be iterated over again and again. Raises InvalidOption where it has none."""
    if given is None:
        raise InvalidOption(
            "accuracy_budget is measured on data; pass calibrator= with typical inputs, such as a DataLoader (it is used for "
            "that also where int8 and fp8 are not enabled)"
        )
    calibrator = calibrator_of(given)
    if isinstance(calibrator, CacheCalibrator):
        raise InvalidOption(
            f"accuracy_budget is measured on data, and {calibrator!r} has ranges only; pass DataLoaderCalibrator(loader, "
            "cache_file=…, use_cache=True), which takes the ranges from the file and the data from the loader"
        )
    if not isinstance(calibrator.dataloader, Iterator):
        return calibrator
    data, file, use_cache = list(calibrator.dataloader), calibrator.cache_file, calibrator.use_cache
    return DataLoaderCalibrator(data, calibrator.algo, file, use_cache)


def no_calibrator(config: QuantizeConfig, why: Exception) -> None:
    """Raise InvalidOption where a model that is compiled in parts, for the reason given, should be calibrated as a whole."""
    if config.accuracy_budget is not None:
        raise InvalidOption(f"accuracy_budget is for models that are one program, and this one is not: {why}")
    if config.calibrator is not None:
        raise InvalidOption(f"only a model that is one program can be calibrated, and this one is not: {why}")


def is_marked(program: ExportedProgram) -> bool:
    """Whether quantization-aware training, or another tool, has put quantize ops into the program."""
    targets = (getattr(node.target, "_schema", None) for node in program.graph.nodes if node.op == "call_function")
    return any(schema.name.partition("::")[2].startswith(_MARKS) for schema in targets if schema is not None)


def calibrate(program: ExportedProgram, placement: Placement, calibrator: Calibrator) -> Calibration:
    """Ranges and bias corrections, from the calibrator's cache or by running the program over its data. Raises InvalidInput."""
    model = digest(program)
    if isinstance(calibrator, CacheCalibrator):
        return fitting(read(calibrator.cache_file, model), placement, calibrator.cache_file)
    file = calibrator.cache_file
    if file and calibrator.use_cache and Path(file).exists():
        cached = fitting(read(file, model), placement, file)
        if cached.algorithm != calibrator.algo.value:
            raise InvalidInput(
                f"{file} was calibrated by {cached.algorithm!r}, and the calibrator asks for {calibrator.algo.value!r}; "
                "calibrate again with use_cache=False, or ask for what the file has"
            )
        return cached
    if file:
        check_writable(file)
    found = _measured(program, placement, calibrator, model)
    if file:
        found.write(file)
    return found


def _measured(program: ExportedProgram, placement: Placement, calibrator: DataLoaderCalibrator, model: str) -> Calibration:
    data = calibrator.dataloader
    device = next((t.device for t in parameters_of(program).values()), None)
    batches, first, count = told_of_constants(batches_of(data, program, device)), list[Batch](), 0
    for batch in batches:
        first.append(batch)
        if enough(first):
            break
    shares = shares_by(program, placement, first)
    ranges = Ranges(placement, shares)
    observed = Observed(program, ranges.look)
    with progress_of("calibrating") as progress:
        progress.expect(len(data) if isinstance(data, Sized) else 0)
        for batch in itertools.chain(first, batches):
            if batch.number >= count:
                count = batch.number + 1
                progress.expect(max(0, count - progress.expected))
                progress.advance()
            ranges.batch = batch.number
            observed.over(batch)
    found = Calibration(model, calibrator.algo.value, count, _ranges(placement, ranges, calibrator.algo), shares=shares)
    return compensated(program, placement, found, first)


def _ranges(placement: Placement, ranges: Ranges, algo: CalibrationAlgo) -> dict[str, Range]:
    dtypes, members = {point.group: point.dtype for point in placement.points}, Counter(point.group for point in placement.points)
    thresholds = [threshold(statistics, algo, dtypes[group]) for group, statistics in enumerate(ranges.statistics)]
    found = {}
    for point in placement.points:
        seen = ranges.statistics[point.group]
        least, greatest = (seen.least, seen.greatest) if seen.counts is not None else (0.0, 0.0)
        found[point.name] = Range(least, greatest, thresholds[point.group])
        if members[point.group] > 1 and (own := ranges.own[point.name]).counts is not None:
            alone = threshold(own, algo, point.dtype)
            if 0 < _APART * alone < thresholds[point.group]:
                found[name_apart(point.name)] = Range(own.least, own.greatest, alone)
    return found
