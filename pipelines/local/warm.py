"""Starts steps as forks of a process that has already imported what they need.

Starting Python and importing torch takes several seconds of CPU, which every step of a pipeline
would pay. Here a server, a process of its own that starts no thread, pays them once and forks. A
step is then a process like any other, with its own session, environment, folder, output and exit
code. (The standard library's fork server imports the caller's main module into each process, skips
atexit, and loses exit codes between threads.) What was imported is kept out of garbage collection
and is not taken apart when a step ends: with torch that took longer than most steps work.

As a program, ``python -m pipelines.local.warm SOCKET MODULE…``, this is the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from percmae.errors import PercmaeError, UserError

_EXECUTOR = "kfp.dsl.executor_main"
# What each step imports, and the steps that train nothing.
_MODULES = ("percmae.stages.steps", "percmae.ingest.verb", "percmae.report.page")
# What a training or an evaluation imports, directly or when it first makes an optimiser.
TRAINING_MODULES = (
    *("percmae.engine.pretrain", "percmae.engine.finetune", "percmae.engine.evaluate"),
    *("torch._dynamo", "tensorboard.summary.writer.record_writer"),
)
_BYTES = 4  # of a number on its way between the processes


@dataclass(frozen=True)
class ComponentCall:
    """A lightweight component's call: its source file's content, and its arguments."""

    source: str
    arguments: list[str]

    @classmethod
    def read(cls, command: Sequence[str]) -> ComponentCall:
        """From the command that KFP would run: ``sh -ec SCRIPT SOURCE ARGUMENTS…``.

        Raises UserError for another form.
        """
        if len(command) < 4 or command[:2] != ["sh", "-ec"] or f"-m {_EXECUTOR}" not in command[2]:
            raise UserError(
                f"kfp starts local tasks by {' '.join(command[:2])!r} in a way percmae does not "
                "know; install kfp 2.17"
            )
        return cls(command[3], list(command[4:]))


class StepProcess:
    """A step's process. ``pid`` is its session's and process group's number too."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = self._number()

    def wait(self) -> int:
        """Its exit code, as a shell tells it: 128 + n for one that signal n has ended."""
        with self._told:
            code = self._number()
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Send a signal to it and all that it has started; nothing where nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _number(self) -> int:
        data = self._told.recv(_BYTES, socket.MSG_WAITALL)
        if len(data) < _BYTES:
            raise PercmaeError("the process that starts the steps has ended; see the log")
        return int.from_bytes(data, signed=True)


class ForkServer:
    """The process that forks; it ends with the block, or with this process. Steps go on."""

    def __init__(self, modules: Sequence[str] = (), environment: Mapping[str, str] = {}) -> None:
        """Begin to import ``modules``, those that are installed.

        environment: what libraries read while they are loaded (the number of threads, say); all
        else that a step's environment holds is set when it starts.
        """
        self._channel, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is not meant for it
            )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.terminate()  # it may still be importing; it holds nothing of the steps
        self._process.wait()

    def start(
        self, call: ComponentCall, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> StepProcess:
        """Start a step that writes to two file descriptors, of which the caller closes its own.

        Raises PercmaeError when the server has ended.
        """
        request = {
            "source": call.source,
            "arguments": call.arguments,
            "environment": dict(environment),
            "folder": os.getcwd(),
        }
        content = json.dumps(request).encode()
        ours, theirs = socket.socketpair()
        with theirs, self._lock, contextlib.suppress(BrokenPipeError):
            size = len(content).to_bytes(_BYTES, signed=True)
            socket.send_fds(self._channel, [size], [stdout, stderr, theirs.fileno()])
            self._channel.sendall(content)
        return StepProcess(ours)


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns it in the step's own process, None when no more will come."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for steps
    while True:
        size, descriptors, _, _ = socket.recv_fds(channel, _BYTES, 3)
        if not size:
            return None
        content = channel.recv(int.from_bytes(size, signed=True), socket.MSG_WAITALL)
        stdout, stderr, told = descriptors
        if os.fork() == 0:
            channel.close()
            with socket.socket(fileno=told) as teller:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                itself, not_yet = os.pipe()
                step = os.fork()
                if step != 0:
                    # Until it has a process group of its own, a signal to that would be lost.
                    os.close(not_yet)
                    os.read(itself, 1)
                    _wait_for(step, teller, descriptors[:2])
            _become_a_process(stdout, stderr)
            os.close(itself)
            os.close(not_yet)
            return dict(json.loads(content))
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for(step: int, teller: socket.socket, descriptors: list[int]) -> NoReturn:
    """Tell a step's number and, when it has ended, its exit code."""
    # The step's output has ended when the step has, and this process is nobody's to see.
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # who has asked is gone
        teller.sendall(step.to_bytes(_BYTES, signed=True))
    code = os.waitstatus_to_exitcode(os.waitpid(step, 0)[1])
    with contextlib.suppress(OSError):
        teller.sendall(code.to_bytes(_BYTES, signed=True))
    os._exit(0)


def _become_a_process(stdout: int, stderr: int) -> None:
    """A session of its own, and these as standard streams, in Python as well as below it."""
    os.setsid()
    for ours, standard in ((stdout, 1), (stderr, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    # What reads them takes them for UTF-8.
    text: Any = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdout = open(1, "w", **text)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, **text)  # noqa: SIM115


def run_component(request: Mapping[str, Any]) -> None:
    """Do what the shell script of KFP does for a lightweight component."""
    os.environ.clear()
    os.environ.update(request["environment"], _KFP_RUNTIME="true")
    os.chdir(request["folder"])
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "ephemeral_component.py"
        source.write_text(request["source"], encoding="utf-8")
        sys.argv = [_EXECUTOR, "--component_module_path", str(source), *request["arguments"]]
        from kfp.dsl.executor_main import executor_main

        executor_main()


def main(descriptor: str, *modules: str) -> None:
    """The server, and in its forks the steps."""
    os.environ["_KFP_RUNTIME"] = "true"  # makes kfp import only what a step needs
    for module in (_EXECUTOR, *_MODULES, *modules):
        with contextlib.suppress(ImportError):
            if module.startswith(
                "timm"
            ):  # which imports torchvision, and cannot everywhere by itself
                importlib.import_module("percmae.vision").load_torchvision()
            importlib.import_module(module)
    if modules:  # for what trains: timm, and torchvision in the one way that works everywhere
        with contextlib.suppress(ImportError):
            importlib.import_module("percmae.vision").load_timm()
    # Forks share these objects' memory for as long as nothing looks at each of them.
    gc.collect()
    gc.freeze()
    request = serve(socket.socket(fileno=int(descriptor)))
    if request is not None:
        _end(run_component, request)


def _end(work: Callable[[Mapping[str, Any]], None], request: Mapping[str, Any]) -> NoReturn:
    """Call ``work``, then end this process as Python does, but for taking its objects apart."""
    code: object = 0
    try:
        work(request)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # known to be the end; threads go first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main(*sys.argv[1:])
