"""An OpenVINO engine as bytes, and back.

An engine has the model twice and its weights once: as OpenVINO compiled it for one CPU, and in OpenVINO's portable form
(IR), whose weights are mostly places in the compiled one. Where the CPU and OpenVINO's version are the same, loading
imports the compiled model in place; elsewhere it compiles the portable one.

    bytes  0.. 8  magic           16..24  the engine's length
           8..12  format          24..56  sha256 of the header
          12..16  header's length 56..    header: JSON, then the sections

Measured (OpenVINO 2026.4.1, 2 cores of a Zen 4, medians of 5 processes), import against compile:
EfficientNet-B0 0.097 : 0.254 s in f32, 0.067 : 0.173 in bf16; ResNet-50 0.056 : 0.141; ViT-S 0.219 : 0.305. Importing from
a stream instead of from memory costs another copy of the weights (ResNet-50: 0.122 s, 98 MiB more).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import openvino as ov
import torch

from torchsmith import debug
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch, PackageError, TorchsmithError
from torchsmith.target import Target, this_cpu

MAGIC = b"tsmithOV"
FORMAT = 1
DEFAULT = "DEFAULT"  # a partitioner: OpenVINO's own choice, which is STATIC
_PREFIX = struct.Struct("<8sIIQ32s")
_SEARCHED = 1024  # bytes; smaller weights are not worth a search, and stand in the section "rest"

Span = tuple[int, int, str, int]  # bytes of the IR's weights: first, how many, the section they stand in, where there


@dataclass(frozen=True)
class Engine:
    """What the bytes say.

    target: the CPU it was compiled for. openvino: the version that compiled it. precision: OpenVINO's
    INFERENCE_PRECISION_HINT. performance_hint, num_threads: as in `BuildConfig`. partitioner: how TBB deals out work,
    `DEFAULT` or "AUTO". extra: the caller's own. sections: "compiled" (may be missing), "model", "rest".
    model_bytes, weights_bytes: the sizes of the IR's two files. spans: where the weights are.
    """

    target: Target
    openvino: str
    precision: str
    performance_hint: str
    num_threads: int
    partitioner: str
    model_bytes: int
    weights_bytes: int
    spans: tuple[Span, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, memoryview] = field(default_factory=dict)


def pack(
    model: ov.Model,
    target: Target,
    config: BuildConfig,
    precision: str,
    extra: Mapping[str, Any] | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
) -> bytes:
    """An engine of the model.

    precision: "f32" or "bf16", OpenVINO's INFERENCE_PRECISION_HINT: what float32 operations compute in. Operations of a
    model that is typed in bfloat16 compute in that whatever the hint. extra: JSON that `parse` gives back. shapes: of the
    inputs, typical ones, to time choices at; needed only where the model's are dynamic.
    """
    assert precision in ("f32", "bf16"), precision
    choices = {"precision": precision, "performance_hint": config.performance_hint, "num_threads": config.num_threads}
    sections, header = (
        {},
        {**choices, "partitioner": DEFAULT, "target": target.to_json(), "openvino": ov.get_version(), "extra": extra or {}},
    )
    if _same_cpu(target, this_cpu()):
        compiled, header["partitioner"] = _compile_fastest(model, choices, shapes)
        sections["compiled"] = compiled.export_model().getvalue()
        del compiled
    with TemporaryDirectory(prefix="torchsmith-") as folder:
        ov.serialize(model, f"{folder}/model.xml", f"{folder}/model.bin")
        xml, weights = Path(folder, "model.xml").read_bytes(), Path(folder, "model.bin").read_bytes()
    header["spans"], sections["rest"] = _spans(_constants(xml), weights, sections.get("compiled", b""))
    header["model_bytes"], header["weights_bytes"] = len(xml), len(weights)
    sections["model"] = zlib.compress(xml, 6)
    return _write(header, sections)


def parse(engine: bytes | memoryview) -> Engine:
    """Read the header, and check every byte and length; the sections are views, not copies.

    Raises PackageError for bytes that are damaged or no engine, EngineMismatch for an engine of a newer format.
    """
    data = memoryview(engine).cast("B")
    header, start = _header(data)
    try:
        sections = {name: _section(data, name, start, *place) for name, place in header["sections"].items()}
        spans = tuple((int(first), int(size), str(name), int(at)) for first, size, name, at in header["spans"])
        read = Engine(
            target=Target.from_json(header["target"]),
            openvino=str(header["openvino"]),
            precision=str(header["precision"]),
            performance_hint=str(header["performance_hint"]),
            num_threads=int(header["num_threads"]),
            partitioner=str(header["partitioner"]),
            model_bytes=int(header["model_bytes"]),
            weights_bytes=int(header["weights_bytes"]),
            spans=spans,
            extra=dict(header["extra"]),
            sections=sections,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"the OpenVINO engine's header makes no sense ({error!r}); get the file again, or compile the model again"
        ) from error
    if not {"model", "rest"} <= sections.keys():
        _damaged("it has no portable model")
    for first, size, name, at in spans:
        if name not in sections or min(first, size, at) < 0 or first + size > read.weights_bytes or at + size > len(sections[name]):
            _damaged(f"its weights reach beyond section {name!r}")
    return read


def unpack(engine: bytes | memoryview | Engine, target: Target) -> ov.CompiledModel:
    """The engine, ready to run on this machine's CPU. The bytes must not change as long as the compiled model is used.

    engine: the bytes, or what `parse` made of them. Their memory is used in place, and is kept by the attribute
    `torchsmith_memory` of what is returned: keep that object as long as any request of it. Raises PackageError for damaged
    bytes, EngineMismatch where the engine cannot run here.
    """
    read = engine if isinstance(engine, Engine) else parse(engine)
    if target.device != "cpu":
        raise EngineMismatch(
            f"an OpenVINO engine runs on CPUs, and was asked to load for {target}; compile the model for {target.device}"
        )
    core, options = _core(), _properties(read)
    if "compiled" in read.sections and read.openvino == ov.get_version() and _same_cpu(read.target, target):
        memory = _writable(read.sections["compiled"])
        try:
            return _keep(core.import_model(ov.Tensor(memory, shared_memory=True), "CPU", options), memory)
        except RuntimeError as refusal:  # OpenVINO sees more of the CPU than a Target says, and checks it
            debug.say(1, f"openvino: compiling again, for {first_line(refusal)}")
    return _rebuild(core, read, options, target)


def _rebuild(core: ov.Core, read: Engine, options: Mapping[str, Any], target: Target) -> ov.CompiledModel:
    """Compile the portable form. Raises EngineMismatch."""
    inflate = zlib.decompressobj()
    try:
        xml = inflate.decompress(read.sections["model"], read.model_bytes)
    except zlib.error as error:
        _damaged(f"its portable model cannot be inflated: {error}")
    weights = np.zeros(read.weights_bytes, np.uint8)
    for first, size, name, at in read.spans:
        weights[first : first + size] = np.frombuffer(read.sections[name], np.uint8, size, at)
    try:
        model = core.read_model(xml.decode(), ov.Tensor(weights, shared_memory=True))
        return _keep(core.compile_model(model, "CPU", options), weights)
    except RuntimeError as refusal:
        raise EngineMismatch(
            f"an OpenVINO engine built for {read.target} with OpenVINO {read.openvino} cannot be compiled for {target} "
            f"with OpenVINO {ov.get_version()}: {first_line(refusal)}; compile the model again here"
        ) from refusal


def _properties(read: Engine) -> dict[str, Any]:
    """OpenVINO's settings. ACCURACY forbids what would change results, and costs nothing (measured)."""
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": read.precision,  # the default is bf16 on CPUs that have it
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": read.performance_hint.upper(),
    }
    if read.partitioner != DEFAULT:
        options["TBB_PARTITIONER"] = read.partitioner
    threads, cores = read.num_threads or torch.get_num_threads(), _cores()
    if read.num_threads or threads < cores:
        options["INFERENCE_NUM_THREADS"] = threads
    if threads < cores:  # pinned threads start at the first core, in every process
        options["ENABLE_CPU_PINNING"] = False
    return options


def _cores() -> int:
    """Cores that this process may use, however many threads each runs."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    smt = Path("/sys/devices/system/cpu/smt/active")
    return max(1, processors // 2) if smt.exists() and smt.read_text().strip() == "1" else processors


def _compile_fastest(
    model: ov.Model, choices: Mapping[str, Any], shapes: Sequence[Sequence[int]] | None
) -> tuple[ov.CompiledModel, str]:
    """Compile with each partitioner that may be the fastest; the first one stays unless the other gains 5 %.

    Balancing work as it runs (AUTO) costs up to 19 % in networks of small ops, and gains 9 to 21 % in the large matrix
    products of transformers in bf16 at batch 1; no rule of sizes told them apart in 20 networks. It never gained in f32.
    """

    def compile(partitioner: str) -> ov.CompiledModel:
        described = Engine(
            this_cpu(), ov.get_version(), **choices, partitioner=partitioner, model_bytes=0, weights_bytes=0, spans=()
        )
        return _core().compile_model(model, "CPU", _properties(described))

    default = compile(DEFAULT)
    kinds = [node.get_type_name() for node in model.get_ops()]
    reduced = choices["precision"] == "bf16" or any(
        node.get_output_element_type(0) == ov.Type.bf16 for node in model.get_ops() if node.get_output_size()
    )
    matrices = kinds.count("MatMul") > kinds.count("Convolution") + kinds.count("GroupConvolution")
    if shapes is None and not model.is_dynamic():
        shapes = [list(port.shape) for port in model.inputs]
    if not (reduced and matrices and shapes is not None and choices["performance_hint"] == "latency"):
        return default, DEFAULT
    auto = compile("AUTO")
    default_seconds, auto_seconds = _least_seconds((default, auto), shapes)
    debug.say(2, f"openvino: partitioner DEFAULT {default_seconds * 1e3:.2f} ms, AUTO {auto_seconds * 1e3:.2f} ms")
    return (auto, "AUTO") if auto_seconds < 0.95 * default_seconds else (default, DEFAULT)


def _least_seconds(
    candidates: Sequence[ov.CompiledModel], shapes: Sequence[Sequence[int]], budget_seconds: float = 0.6
) -> list[float]:
    """The shortest call of each, in turns: what a busy machine disturbs least."""
    requests = [compiled.create_infer_request() for compiled in candidates]
    for request, compiled in zip(requests, candidates, strict=True):
        for index, (port, shape) in enumerate(zip(compiled.inputs, shapes, strict=True)):
            request.set_input_tensor(index, _zeros(port, shape))
        request.infer(share_outputs=True)
    least = [float("inf")] * len(requests)
    end, rounds = time.perf_counter() + budget_seconds, 0
    while rounds < 3 or (time.perf_counter() < end and rounds < 50):
        for index, request in enumerate(requests):
            started = time.perf_counter()
            request.infer(share_outputs=True)
            least[index] = min(least[index], time.perf_counter() - started)
        rounds += 1
    return least


def _zeros(port: ov.ConstOutput, shape: Sequence[int]) -> ov.Tensor:
    tensor = ov.Tensor(port.element_type, ov.Shape(list(shape)))
    tensor.data[...] = 0
    return tensor


def _constants(xml: bytes) -> list[tuple[int, int]]:
    """First byte and size of every constant in the IR's weights; equal ones share a place."""
    return sorted({(int(first), int(size)) for first, size in re.findall(rb'offset="(\d+)" size="(\d+)"', xml)})


def _spans(constants: Sequence[tuple[int, int]], weights: bytes, compiled: bytes) -> tuple[list[Span], bytes]:
    """Where each byte of the weights stands, and the bytes that the compiled model does not have."""
    spans: list[Span] = []
    rest = bytearray()
    done, cursor = 0, 0

    def keep(first: int, end: int) -> None:
        if end > first:
            spans.append((first, end - first, "rest", len(rest)))
            rest.extend(weights[first:end])

    for first, size in constants:
        if first < done or size < _SEARCHED:
            continue
        at = _find(weights[first : first + size], compiled, cursor)
        if at is not None:
            keep(done, first)
            spans.append((first, size, "compiled", at))
            done, cursor = first + size, at + size
    keep(done, len(weights))
    return spans, bytes(rest)


def _find(chunk: bytes, data: bytes, cursor: int) -> int | None:
    """A place of the chunk in the data, from the cursor on or before it. OpenVINO mostly keeps the constants' order."""
    for at in _places(chunk[:64], data, cursor):
        if data.startswith(chunk, at):
            return at
    return None


def _places(start: bytes, data: bytes, cursor: int, most: int = 8) -> Iterator[int]:
    """Some places where `start` stands. Constants that begin alike, with zeros say, end the search early: it is for size only."""
    for begin, end in ((cursor, len(data)), (0, cursor)):
        for _ in range(most):
            at = data.find(start, begin, end)
            if at < 0:
                break
            yield at
            begin = at + 1


def _write(header: dict[str, Any], sections: Mapping[str, bytes]) -> bytes:
    at, places = 0, {}
    for name, content in sections.items():
        places[name] = (at, len(content), hashlib.sha256(content).hexdigest())
        at += len(content)
    text = json.dumps({**header, "sections": places}, separators=(",", ":")).encode()
    prefix = _PREFIX.pack(MAGIC, FORMAT, len(text), _PREFIX.size + len(text) + at, hashlib.sha256(text).digest())
    return b"".join((prefix, text, *sections.values()))


def _header(data: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and where the sections start."""
    if len(data) < _PREFIX.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise PackageError("these bytes are no OpenVINO engine of torchsmith's; give it what torchsmith built or saved")
    _, format, size, total, checksum = _PREFIX.unpack_from(data)
    if format > FORMAT:
        raise EngineMismatch(
            f"an OpenVINO engine has format {format}, and this torchsmith reads up to {FORMAT}; "
            "update torchsmith, or compile the model again"
        )
    if len(data) != total:
        _damaged(f"it has {len(data)} bytes of {total}")
    start = _PREFIX.size + size
    text = data[_PREFIX.size : _PREFIX.size + size]
    if start > total or hashlib.sha256(text).digest() != checksum:
        _damaged("its header has changed")
    header: dict[str, Any] = json.loads(bytes(text))
    return header, start


def _section(data: memoryview, name: str, start: int, at: int, size: int, checksum: str) -> memoryview:
    first = start + at
    if at < 0 or size < 0 or first + size > len(data):
        _damaged(f"section {name!r} reaches beyond its end")
    section = data[first : first + size]
    if hashlib.sha256(section).hexdigest() != checksum:
        _damaged(f"section {name!r} has changed")
    return section


def _damaged(how: str) -> NoReturn:
    raise PackageError(f"an OpenVINO engine is damaged: {how}; get the file again, or compile the model again")


def _same_cpu(a: Target, b: Target) -> bool:
    return (a.device, a.arch, a.features) == (b.device, b.arch, b.features)


def _writable(view: memoryview) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The view's memory as an array that OpenVINO takes without a copy. It asks for a writable one, and only reads."""
    array = np.frombuffer(view, np.uint8)
    if array.flags.writeable:
        return array
    return np.asarray(_Memory(array, {**array.__array_interface__, "data": (array.ctypes.data, False)}))


@dataclass(frozen=True)
class _Memory:
    owner: Any  # keeps the memory
    __array_interface__: dict[str, Any]


def _keep(compiled: ov.CompiledModel, memory: Any) -> ov.CompiledModel:
    """OpenVINO points into the memory it is given, and does not keep it: a freed one is a crash."""
    compiled.torchsmith_memory = memory
    return compiled


def _core() -> ov.Core:
    """This process's OpenVINO. Raises TorchsmithError in a child of fork() whose parent has used it: its threads are not there."""
    core, pid = _core_of_process()
    if pid != os.getpid():
        raise TorchsmithError(
            "this process was forked from one that had loaded an OpenVINO engine, whose threads do not survive fork(); "
            "start processes with multiprocessing's 'spawn', or load engines only after the fork"
        )
    return core


@functools.cache
def _core_of_process() -> tuple[ov.Core, int]:
    return ov.Core(), os.getpid()


def first_line(error: RuntimeError) -> str:
    """What OpenVINO says of its refusal, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or ["no reason given"])[0]
