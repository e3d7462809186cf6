"""The processes that make a loader's batches, and the way a batch takes from them.

Not torch's DataLoader: its queues and its batches lie in /dev/shm. Where that is small (64 MB in a
container of Docker's) a batch that finds no room is lost without a word and training waits for
ever; where it cannot be written to, nothing works. Here a batch lies in memory that no file system
limits (memfd), and its descriptor comes through a socket. Everything that can become of a worker is
seen at that socket: a batch, an error, its end, or nothing for too long.
"""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import pickle
import re
import resource
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from percmae.data.shortage import shortage, told
from percmae.errors import PercmaeError, UserError, WorkerLost
from percmae.memory import keep_freed_memory
from percmae.storage import outage

# Items that each worker may have ready before they are asked for.
_AHEAD = 2
_ITEM, _END, _ERROR, _FAULT = b"i", b".", b"e", b"!"
_LONGEST_MESSAGE = 1 << 16
_CLOSED_ON_EXEC = socket.MSG_CMSG_CLOEXEC
_ORPHAN_CHECK = 5.0  # seconds between two looks at whether the parent is still there
_SPARE = 16  # files that are open beside those of the workers: shards, figures, a checkpoint
_PATIENCE = 5.0  # seconds that a killed process is waited for
_DUMP = signal.SIGUSR1  # has a worker write down where it is
_OWN = "/percmae/"
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass
class _Worker:
    pid: int
    link: socket.socket
    words: int  # descriptor of what it writes when it crashes, or is asked where it is
    status: int | None = None  # as waitpid gives it, once it has ended


def require_descriptors(count: int) -> None:
    """Raise UserError where this process may not open as many files as ``count`` workers need."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = len(os.listdir("/proc/self/fd")) + 2 * count + _SPARE
    if count and limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"data.workers={count}: {needed} open files are needed, ulimit -n is {limit}; raise "
            "it, or lower data.workers"
        )


class Workers:
    """Processes that share the making of a sequence; closed by :meth:`close`.

    Worker w of W makes the items w, w + W, …, and :meth:`take` takes from them in turn. The workers
    are forked, so what they make it from needs no pickling; items do. The data of numpy arrays is
    shared, not copied.
    """

    def __init__(
        self, count: int, make: Callable[[int, int], Iterator[Any]], timeout: float
    ) -> None:
        """
        make: (worker, workers) to that worker's items; called in the worker. timeout: seconds
        that an item is waited for, those left out in which the store is away. Raises UserError
        where this machine has no room for them.
        """
        self._timeout = timeout
        self._workers: list[_Worker] = []
        self._turn = 0
        self._ended = False
        self._busy = threading.Lock()
        try:
            with told(f"starting {count} data workers"):
                for number in range(count):
                    self._start(number, count, make)
        except BaseException:
            self.close()
            raise

    def take(self) -> Any | None:
        """The next item; None behind the last one.

        Raises what PercmaeError a worker met, and WorkerLost for one that ended, or that gave
        nothing within the timeout.
        """
        with self._busy:
            if self._ended:
                return None
            worker = self._workers[self._turn]
            message, fds = self._receive(worker)
            kind, content = message[:1], message[1:]
            if kind == _ITEM:
                with told("taking a batch from a data worker"):
                    item = _unpack(content, fds)
                with suppress(OSError):  # it may have ended, which the next turn will tell
                    worker.link.send(b"+")
                self._turn = (self._turn + 1) % len(self._workers)
                return item
            if kind == _END:
                self._ended = True  # what would come behind it is the others' not to make either
                return None
            if kind == _ERROR:
                raise pickle.loads(content)
            if kind == _FAULT:
                raise RuntimeError(f"data worker {self._turn}: {content.decode()}")
            raise self._lost(worker)

    def close(self) -> None:
        """End the workers; what they have at hand is thrown away. Closing twice is fine.

        A :meth:`take` that is under way in another thread ends with an error.
        """
        for worker in self._workers:
            with suppress(OSError):
                worker.link.shutdown(socket.SHUT_RDWR)
            with suppress(ProcessLookupError):
                if worker.status is None:
                    os.kill(worker.pid, signal.SIGKILL)  # they keep nothing
        with self._busy:
            for worker in self._workers:
                self._reap(worker)
                worker.link.close()
                os.close(worker.words)
            self._workers = []

    def _start(self, number: int, count: int, make: Callable[[int, int], Iterator[Any]]) -> None:
        with ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                words = os.memfd_create("percmae-words")
                undo.callback(os.close, words)
                # A signal in between would find the handlers of the parent.
                held = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
                parent = os.getpid()
                try:
                    pid = os.fork()
                    if pid == 0:
                        others = [ours, *(worker.link for worker in self._workers)]
                        _be_worker(parent, theirs, others, words, lambda: make(number, count))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, held)
            undo.pop_all()
            self._workers.append(_Worker(pid, ours, words))

    def _receive(self, worker: _Worker) -> tuple[bytes, list[int]]:
        """A message and the descriptors with it; (b"", []) from a worker that has ended."""
        poll = select.poll()
        poll.register(worker.link, select.POLLIN)
        left = self._timeout
        # Second by second: while all processes are stopped (a laptop asleep, a debugger), time
        # passes that no worker had. Nor is one to blame while the store is away.
        while not poll.poll(1000 * min(left, 1.0)):
            left -= 0.0 if outage.waiting() else 1.0
            if left <= 0:
                raise self._silent(worker)
        receive = partial(socket.recv_fds, worker.link, _LONGEST_MESSAGE, 1, _CLOSED_ON_EXEC)
        try:
            message, fds, _, _ = receive()
        except ConnectionResetError:  # told once; what was sent before the end is still there
            message, fds, _, _ = receive()
        return message, fds

    def _lost(self, worker: _Worker) -> WorkerLost:
        self._reap(worker)
        how = "unexpectedly"
        if worker.status is not None:
            code = os.waitstatus_to_exitcode(worker.status)
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        words = _places(_read(worker.words))
        return WorkerLost(
            f"a data worker ended {how}{f' at {words}' if words else ''}; if it was killed for "
            "memory, lower data.workers or data.batch_size"
        )

    def _silent(self, worker: _Worker) -> WorkerLost:
        """What is known of a worker that gives nothing."""
        state = _state(worker.pid)
        with suppress(ProcessLookupError):
            os.kill(worker.pid, _DUMP)
        dump = ""
        for _ in range(20):
            time.sleep(0.1)
            before, dump = dump, _read(worker.words)
            if dump and dump == before:
                break
        alive = sum(_state(other.pid) != "ended" for other in self._workers)
        return WorkerLost(
            f"no batch from data worker {self._turn} (process {worker.pid}) for "
            f"{self._timeout:g} s: it is {state}, "
            f"{'at ' + _places(dump) if dump else 'and does not answer'}; {alive} of "
            f"{len(self._workers)} workers are alive; if batches may take that long, raise "
            "data.timeout"
        )

    def _reap(self, worker: _Worker) -> None:
        deadline = time.monotonic() + _PATIENCE
        # One that hangs in a file system cannot be killed, and must not hold up this process.
        while worker.status is None and time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
            except ChildProcessError:  # someone else has asked for it
                return
            if pid:
                worker.status = status
            else:
                time.sleep(0.005)


# Ctrl-C, and a supervisor's SIGTERM, reach the whole process group; the parent alone decides what
# they mean, and may want further batches until it has saved.
_LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGTERM)


def _be_worker(
    parent: int,
    link: socket.socket,
    inherited: list[socket.socket],
    words: int,
    make: Callable[[], Iterator[Any]],
) -> NoReturn:
    code = 1
    try:
        for number in _LEFT_TO_THE_PARENT:
            signal.signal(number, signal.SIG_IGN)
        for other in inherited:  # or the parent's end would go unnoticed
            other.close()
        faulthandler.enable(words)
        faulthandler.register(_DUMP, words)
        torch.set_num_threads(1)  # OpenMP's threads have not come along
        keep_freed_memory()
        _serve(parent, link, make())
        code = 0
    finally:
        os._exit(code)  # without the parent's clean-up


def _serve(parent: int, link: socket.socket, items: Iterator[Any]) -> None:
    """Make items as they are asked for, until there are no more or the parent has gone."""
    asked = _AHEAD
    try:
        while asked or _is_asked(parent, link):
            asked = max(0, asked - 1)
            try:
                item = next(items)
            except StopIteration:
                link.send(_END)
                return
            _send(link, item)
    except ConnectionError:
        return
    except PercmaeError as error:
        link.send(_ERROR + pickle.dumps(error))
    except BaseException as error:
        if reason := shortage(error):
            link.send(_ERROR + pickle.dumps(WorkerLost(f"a data worker cannot go on: {reason}")))
        else:
            link.send(_FAULT + traceback.format_exc().encode()[-_LONGEST_MESSAGE // 2 :])


def _is_asked(parent: int, link: socket.socket) -> bool:
    """Wait to be asked for an item; False when the parent has gone."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while not poll.poll(1000 * _ORPHAN_CHECK):
        if os.getppid() != parent:  # someone else may hold the other end of the link
            return False
    return bool(link.recv(1))


def _send(link: socket.socket, item: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    memory = os.memfd_create("percmae-batch")
    try:
        with open(memory, "wb", closefd=False) as file:
            for view in views:
                file.write(view)
            file.write(body)
        layout = pickle.dumps(([view.nbytes for view in views], len(body)))
        socket.send_fds(link, [_ITEM + layout], [memory])
    finally:
        os.close(memory)


def _unpack(layout: bytes, memory: list[int]) -> Any:
    """The item whose arrays lie in ``memory``, a descriptor.

    The memory, and a copy of the descriptor that Python's mmap keeps, last as long as the arrays.
    Without one, this process could not open any more: raises OSError, as for want of memory.
    """
    if not memory:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    sizes, body = pickle.loads(layout)
    try:
        mapped = mmap.mmap(memory[0], sum(sizes) + body, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(memory[0])
    view, buffers, start = memoryview(mapped), [], 0
    for size in sizes:
        buffers.append(view[start : start + size])
        start += size
    return pickle.loads(view[start:], buffers=buffers)


def _state(pid: int) -> str:
    """What a process is doing, in words."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "ended"
    return {
        "R": "computing",
        "S": "waiting",
        "D": "waiting for a disk or network file system",
        "T": "stopped by a signal",
        "t": "stopped by a debugger",
        "Z": "ended",
    }.get(letter, f"in state {letter}")


def _read(words: int) -> str:
    return os.pread(words, 1 << 20, 0).decode(errors="replace")


def _places(dump: str) -> str:
    """From faulthandler's stacks: where each thread is that came through this package."""
    places = []
    for stack in dump.split("(most recent call first)")[1:]:
        frames = _FRAME.findall(stack)
        own = [frame for frame in frames if _OWN in frame[0]]
        if own:
            called = "" if own[0] is frames[0] else f" called from {_place(*own[0])}"
            places.append(f"{_place(*frames[0])}{called}")
    return ", ".join(dict.fromkeys(places))


def _place(path: str, line: str, function: str) -> str:
    short = path[path.rindex(_OWN) + 1 :] if _OWN in path else "/".join(path.split("/")[-2:])
    return f"{short}:{line} ({function})"
