"""Calling an engine: from threads, on streams, with tensors of any strides, inside other CUDA graphs, again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchsmith
from tests.backends.cuda.on_gpu.nets import Bert, Cnn, Vit, fast, images, made, needs_gpu, right, words
from torchsmith.backends.cuda.storage import Memory
from torchsmith.errors import OutOfDeviceMemory
from torchsmith.runtime.compiled import CompiledModule

pytestmark = needs_gpu


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, CompiledModule]:
    model = made(Cnn)
    return model, fast(model, [images()])


@pytest.fixture(scope="module")
def any_batch() -> tuple[nn.Module, CompiledModule]:
    model = made(Cnn)
    return model, fast(model, [torchsmith.Input((Dim("batch", min=1, max=9), 3, 32, 32))])


def from_threads(count: int, streams: int, work: Callable[[int], None]) -> None:
    """work(number) in each of `count` threads, on `streams` streams in turn. Raises what one of them raised."""
    on = [torch.cuda.Stream() for _ in range(streams)]
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(on[number % streams]):
                work(number)
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    torch.cuda.synchronize()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_a_thousand_calls_from_eight_threads_on_four_streams(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    given = [images(seed=seed) for seed in range(16)]
    wanted = [module(x).clone() for x in given]
    found: list[list[tuple[int, Tensor]]] = [[] for _ in range(8)]

    def work(number: int) -> None:
        for turn in range(125):
            which = (7 * number + turn) % len(given)
            found[number].append((which, module(given[which])))

    from_threads(8, 4, work)
    torch.cuda.synchronize()
    for calls in found:
        assert len(calls) == 125
        assert all(torch.equal(result, wanted[which]) for which, result in calls), "outputs differ, or were written over"


def test_threads_with_sizes_of_their_own(any_batch: tuple[nn.Module, CompiledModule]) -> None:
    _, module = any_batch
    given = [images(batch, seed=batch) for batch in range(1, 9)]
    found: list[list[Tensor]] = [[] for _ in range(8)]

    def work(number: int) -> None:
        for turn in range(30):
            found[number].append(module(given[(number + turn) % 8]))

    from_threads(8, 3, work)  # sizes are met for the first time by several at once
    wanted = [module(x) for x in given]
    for number, results in enumerate(found):
        assert all(torch.equal(result, wanted[(number + turn) % 8]) for turn, result in enumerate(results))


def test_earlier_outputs_stay(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    given = [images(seed=seed) for seed in range(40)]
    kept = [module(x) for x in given]
    copies = [y.clone() for y in kept]
    for x in reversed(given):
        module(x)
    assert all(map(torch.equal, kept, copies))
    assert len({y.data_ptr() for y in kept}) == len(kept)


def test_sizes_that_are_forgotten_while_they_run() -> None:
    """More sizes than are kept, each on another stream, so that memory is given back behind calls that are not done."""
    model = made(Cnn)
    module = fast(model, [torchsmith.Input((Dim("batch", min=1, max=40), 3, 32, 32))])
    given = {batch: images(batch) for batch in range(1, 25)}
    wanted = {batch: module(x) for batch, x in given.items()}
    streams = [torch.cuda.Stream() for _ in range(5)]
    torch.cuda.synchronize()
    found = []
    for batch, x in given.items():
        stream = streams[batch % len(streams)]
        slow(stream)
        with torch.cuda.stream(stream):
            found.append((batch, module(x)))
    torch.cuda.synchronize()
    assert all(torch.equal(result, wanted[batch]) for batch, result in found)


def slow(stream: torch.cuda.Stream) -> None:
    """Keep a stream busy for some milliseconds."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)


def test_a_call_waits_for_what_is_before_it_on_its_stream(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    x, other = images(seed=1), images(seed=2)
    wanted = module(other)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for _ in range(3):
        given = x.clone()
        torch.cuda.synchronize()
        slow(side)
        with torch.cuda.stream(side):
            given.copy_(other)  # after the long kernel, before the call
            result = module(given)
            after = result * 1
        side.synchronize()
        assert torch.equal(result, wanted) and torch.equal(after, wanted)


def test_a_call_on_another_stream_waits_for_the_one_before(cnn: tuple[nn.Module, CompiledModule]) -> None:
    """The engine's memory is shared between calls, so that even independent streams take turns."""
    _, module = cnn
    x, other = images(seed=1), images(seed=2)
    wanted = module(x), module(other)
    torch.cuda.synchronize()
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(5):
        slow(streams[0])
        with torch.cuda.stream(streams[0]):
            first = module(x)
        with torch.cuda.stream(streams[1]):
            second = module(other)
        torch.cuda.synchronize()
        assert torch.equal(first, wanted[0]) and torch.equal(second, wanted[1])


def test_an_input_that_changes_after_the_call(cnn: tuple[nn.Module, CompiledModule]) -> None:
    """As in PyTorch: what is enqueued on the stream after the call comes after it."""
    _, module = cnn
    x = images()
    wanted, given = module(x), x.clone()
    slow(torch.cuda.current_stream())
    result = module(given)
    given.zero_()
    assert torch.equal(result, wanted)
    del given
    rubbish = [torch.full_like(x, float("nan")) for _ in range(8)]  # may be given the freed memory
    assert torch.equal(module(x), wanted) and len(rubbish) == 8


def strange(x: Tensor) -> dict[str, Tensor]:
    """The same numbers with other strides and addresses."""
    n, c, h, w = x.shape
    flat = torch.zeros(x.numel() + 1, device=x.device, dtype=x.dtype)
    wide = torch.zeros(n, c, h, 2 * w, device=x.device, dtype=x.dtype)
    more = torch.zeros(n + 1, c, h, w, device=x.device, dtype=x.dtype)
    unaligned = flat[1:].view(x.shape)
    strided, rows = wide[..., ::2], more[1:]
    for made_ in (unaligned, strided, rows):
        made_.copy_(x)
    return {
        "unaligned": unaligned,
        "every second column": strided,
        "without its first": rows,
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(n, -1, -1, -1),
        "a parameter": nn.Parameter(x.clone()),
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", list(strange(torch.zeros(1, 1, 1, 1))))
def test_inputs_of_any_strides(any_batch: tuple[nn.Module, CompiledModule], name: str, batch: int) -> None:
    _, module = any_batch
    x = images(batch)
    given = strange(x)[name]
    wanted = module(given.detach().contiguous().clone())
    for _ in range(3):
        assert torch.equal(module(given), wanted)
        assert torch.equal(module(x), module(x.clone()))
    assert not module(given).requires_grad


def test_the_same_memory_with_other_strides(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    x = images()
    turned = x.transpose(2, 3)  # the same address and shape
    wanted, other = module(x.clone()), module(turned.contiguous())
    assert not torch.equal(wanted, other)
    for _ in range(2):
        assert torch.equal(module(x), wanted) and torch.equal(module(x), wanted)
        assert torch.equal(module(turned), other) and torch.equal(module(turned), other)


def test_no_memory_for_a_copy_of_one_of_two_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is already read where it is by then; the next call brings others."""
    model = made(Sum)
    module = fast(model, [images(), images()])
    first, second, third = images(seed=1), images(seed=2), images(seed=3)
    wanted = module(first, second)
    assert torch.equal(module(first, second), wanted)
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "copied", no_memory)
        with pytest.raises(OutOfDeviceMemory):
            module(third, second.transpose(2, 3))
    assert torch.equal(module(first, second), wanted)
    right(wanted, model, first, second)


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a) + 2 * b


def no_memory(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("none is left")


def test_words_of_any_strides() -> None:
    model = made(Bert)
    ids, mask = words()
    module = fast(model, [ids, mask])
    wanted = module(ids, mask)
    doubled = torch.stack([ids, ids], -1)[..., 0]
    shifted = torch.cat([mask.new_zeros(1), mask.flatten()])[1:].view(mask.shape)
    assert torch.equal(module(doubled, shifted), wanted)
    assert torch.equal(module(ids.t().contiguous().t(), mask), wanted)
    right(wanted, model, ids, mask)


class Edges(nn.Module):
    """Outputs that are inputs, that repeat, that are views, that are constants; inputs of bools and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, ids: Tensor, flags: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.linear(x))
        kept = torch.where(flags, y, self.table)
        return {"x": x, "y": y, "again": y, "turned": y.t(), "half": y[1:], "kept": kept, "ids": ids + 1, "not": ~flags}


def test_outputs_of_every_kind() -> None:
    model = Edges().cuda().eval()
    x, ids, flags = torch.randn(4, 6).cuda(), torch.arange(4).cuda(), (torch.arange(24) % 3 == 0).view(4, 6).cuda()
    module = fast(model, [x, ids, flags], torch.float32)
    for _ in range(3):
        given, wanted = module(x, ids, flags), model(x, ids, flags)
        assert given.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(given[name], value.detach(), rtol=1e-5, atol=1e-6)
        before = given["again"].clone()
        given["y"].add_(1)  # the user's own to change, and the engine's memory stays as it was
        given["kept"].zero_()
        again = module(x, ids, flags)
        torch.testing.assert_close(again["again"], before, rtol=0, atol=0)
        torch.testing.assert_close(again["kept"], wanted["kept"].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Cnn, Vit], ids=["cnn", "vit"])
def test_inside_a_users_own_graph(kind: type[nn.Module]) -> None:
    model, x = made(kind), images()
    module = fast(model, [x])
    static = x.clone()
    wanted = [module(images(seed=seed)) for seed in range(3)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = module(static) * 2
    for seed in range(3):
        static.copy_(images(seed=seed))
        graph.replay()
        assert torch.equal(result, wanted[seed] * 2)
    assert torch.equal(module(images(seed=1)), wanted[1])


def test_a_first_call_inside_a_users_own_graph() -> None:
    model, x = made(Cnn), images()
    module = fast(model, [x])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = module(x)
    graph.replay()
    assert torch.equal(result, module(x))


def test_under_inference_mode_and_autocast(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    x = images()
    wanted = module(x)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(module(x.clone()), wanted)
    after = module(x)
    assert torch.equal(after, wanted) and not after.is_inference()
    after.add_(1)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(module(x), wanted)
    assert torch.equal(module(x), wanted)


def test_first_called_under_inference_mode_and_autocast() -> None:
    model, x = made(Vit), images()
    wanted = fast(model, [x])(x)
    module = fast(model, [x])
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(module(x), wanted)
    y = module(x)
    assert torch.equal(y, wanted) and not y.is_inference()
    y.add_(1)


def test_after_the_cache_was_emptied(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    x = images()
    wanted = module(x)
    for _ in range(3):
        torch.cuda.empty_cache()
        filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(16)]
        assert torch.equal(module(x), wanted) and len(filler) == 16
        del filler


def test_memory_does_not_grow(cnn: tuple[nn.Module, CompiledModule]) -> None:
    _, module = cnn
    x = images()
    for _ in range(5):
        module(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(200):
        module(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_a_module_that_goes_gives_its_memory_back() -> None:
    model, x = made(Cnn), images()

    def use() -> None:
        module = fast(model, [x])
        module(x)
        torch.cuda.synchronize()

    use()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        use()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_on_a_second_gpu() -> None:
    with torch.cuda.device(1):
        model = made(Cnn)
    x = images().to("cuda:1")
    module = fast(model.to("cuda:1"), [x])
    assert module.device == torch.device("cuda:1")
    with torch.cuda.device(0):  # the current device is another one
        y = module(x)
        torch.cuda.synchronize(1)
        assert y.device == torch.device("cuda:1")
        assert torch.equal(module(x), y)
    right(y, model, x)


def test_what_a_call_costs(cnn: tuple[nn.Module, CompiledModule]) -> None:
    """Printed, not held to a limit: machines differ."""
    _, module = cnn
    x = images()
    for _ in range(20):
        module(x)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(200):
        module(x)
    enqueued = time.perf_counter() - started
    torch.cuda.synchronize()
    print(f"{1e6 * enqueued / 200:.1f} us a call on the host, {1e6 * (time.perf_counter() - started) / 200:.1f} us with the GPU")
