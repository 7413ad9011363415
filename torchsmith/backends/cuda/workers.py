"""Processes that compile kernels. Each is an interpreter of its own, which never looks at the user's `__main__`.

They talk in pickles of this package's own making, over pipes that nobody else holds. A worker that has had nothing to do for
a minute ends; one that dies over a kernel is replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from torchsmith.backends.cuda.steps import Kernel

IDLE_SECONDS = 60.0
KERNEL_SECONDS = 300.0  # a kernel that takes longer to compile is given up
_STARTING_SECONDS = 300.0  # importing PyTorch and Triton from a cold disk, with many others at once


class WorkerDied(Exception):
    """The process ended, or was ended, before it answered."""


class Worker:
    """One process. Not to be shared between threads while it works."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes to it as long as it lives
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from torchsmith.backends.cuda.workers import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment(),
        )
        self.fresh = True

    def compile(self, kernel: Kernel, arch: int) -> Any:
        """What `cubins.attempt` gives for it. Raises WorkerDied, with what the process last said."""
        patience = KERNEL_SECONDS + (_STARTING_SECONDS if self.fresh else 0.0)
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            _send(self.process.stdin, (kernel, arch))
            answer = _receive(self.process.stdout, patience)
        except (OSError, EOFError, TimeoutError, pickle.UnpicklingError) as why:
            self.end()
            raise WorkerDied(self._last_words(why)) from why
        self.fresh = False
        return answer

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent any more
                    pipe.close()

    def _last_words(self, why: Exception) -> str:
        self.log.seek(0)
        said = self.log.read()[-500:].decode(errors="replace").strip()
        how = f"it took more than {KERNEL_SECONDS:.0f} s" if isinstance(why, TimeoutError) else f"exit {self.process.returncode}"
        return f"{how}; {said}" if said else how


_idle: list[Worker] = []
_lock = threading.Lock()


@atexit.register
def dismiss() -> None:
    """Let the idle processes go; they end by themselves once nobody can ask them anything."""
    with _lock:
        workers = [_idle.pop() for _ in range(len(_idle))]
    for worker in workers:
        assert worker.process.stdin is not None
        worker.process.stdin.close()
    for worker in workers:
        try:
            worker.process.wait(5)
        except subprocess.TimeoutExpired:
            worker.end()


def _take() -> Worker:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.is_alive():
                return worker
            worker.end()
    return Worker()


def _give_back(worker: Worker) -> None:
    with _lock:
        _idle.append(worker)


def compile_in_workers(kernels: Sequence[Kernel], arch: int, count: int) -> Iterator[tuple[Kernel, Any]]:
    """Each kernel with what `cubins.attempt` gives for it, as they are done; WorkerDied where it killed two processes.

    count: how many processes at most. Kernels are begun in their order. Raises OSError where no process can be started.
    """
    todo: queue.SimpleQueue[Kernel] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Kernel, Any]] = queue.SimpleQueue()
    for kernel in kernels:
        todo.put(kernel)
    stopped = threading.Event()
    first = _take()
    threads = [
        threading.Thread(target=_work, args=(first if i == 0 else None, todo, done, arch, stopped), daemon=True)
        for i in range(min(count, len(kernels)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in kernels:
            yield done.get()
    finally:
        stopped.set()


def _work(worker: Worker | None, todo: Any, done: Any, arch: int, stopped: threading.Event) -> None:
    try:
        while not stopped.is_set():
            kernel = todo.get_nowait()
            worker, answer = _persist(worker, kernel, arch)
            done.put((kernel, answer))
    except queue.Empty:
        pass
    finally:
        if worker is not None and worker.is_alive():
            _give_back(worker)


def _persist(worker: Worker | None, kernel: Kernel, arch: int) -> tuple[Worker | None, Any]:
    """Twice: the first time the process may have died of something else, such as too little memory for all of them."""
    answer: Any = None
    for _ in range(2):
        try:
            worker = worker if worker is not None and worker.is_alive() else _take()
            return worker, worker.compile(kernel, arch)
        except (WorkerDied, OSError) as death:
            worker, answer = None, death
    return None, answer


def environment() -> dict[str, str]:
    """A worker's: our modules as this process finds them, no interpreter of kernels, no GPU, one thread."""
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRITON_KERNEL_DUMP", "PYTHONSTARTUP")}
    return {
        **kept,
        **{"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    }


# ---- in the worker -------------------------------------------------------------


def main() -> None:
    """Answer kernels with machine code until nobody asks for a while, or who asked is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print is no answer
    asked = os.fdopen(os.dup(0), "rb", buffering=0)
    with tempfile.TemporaryDirectory(prefix="torchsmith-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # ours keeps what is worth keeping
        from torchsmith.backends.cuda.cubins import attempt

        import_ahead()
        while select.select([asked], [], [], IDLE_SECONDS)[0]:
            try:
                kernel, arch = _receive(asked, IDLE_SECONDS)
            except EOFError:
                return
            _send(answers, attempt(kernel, arch))


def import_ahead() -> None:
    import triton.compiler  # noqa: F401

    import torchsmith.backends.cuda.kernels.common  # noqa: F401


def _send(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes], seconds: float) -> Any:
    """The next message. Raises EOFError where the other side is gone, TimeoutError where it says nothing for so long."""
    deadline = time.monotonic() + seconds
    size = int.from_bytes(_exactly(pipe, 8, deadline), "little")
    return pickle.loads(_exactly(pipe, size, deadline))


def _exactly(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data
