"""Runs a KFP pipeline on this machine in a way that a person can follow and stop.

What ``kfp.local`` (2.17, ``SubprocessRunner(use_venv=False)``) does, found by experiment:

- A task is ``sh -c`` with a new Python process; 0.35 s of overhead. It has this process's
  environment, so the store's keys reach it. Only its artifacts' small files go through KFP.
- Tasks run one after another in an order that respects their inputs. ``ParallelFor`` runs its
  iterations in threads, two at a time and never more, whatever ``parallelism`` says; inside one
  iteration tasks run in sequence. So seeds are what is parallel here.
- ``dsl.Collected`` works for outputs that every iteration has. For one inside ``dsl.If`` that is
  not taken, the run fails.
- A failed task fails its iteration, but the iterations that wait are still started, and so they
  are after a Ctrl-C.
- stdout and stderr of a task are merged, indented by a patched ``print`` (which parallel
  iterations leave patched) and mixed with KFP's own log and the whole executor input; the exit
  code is lost. The error raised in the end names the outermost loop iteration only.
- Caching is off unless asked for in ``kfp.local.init``.

KFP has no hook for how a process is started, so ``run_pipeline`` puts its own function in the
place of ``kfp.local.subprocess_task_handler.run_local_subprocess`` for as long as it runs. It does
in a fork of a prepared process (``warm``) what KFP's shell script does in a new one.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, TextIO

from percmae.config.naming import Kind
from percmae.errors import Interrupted, PercmaeError, StoreAway, UserError
from percmae.ingest.cores import usable_cores
from percmae.stages.without_labels import SKIPPED
from pipelines.local.console import Console
from pipelines.local.output import StepErrors, pump, terminal_for
from pipelines.local.warm import ComponentCall, ForkServer, StepProcess

# What kfp.local runs at the same time (ParallelExecutor.conservative_max).
PARALLEL = 2
# The step that ends every run in a cluster.
LAST = "clean"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class FinishedStep:
    """A step that has ended well.

    artifacts: the metadata of each artifact that the step has made, by name.
    """

    name: str
    seed: int | None
    seconds: float
    artifacts: dict[str, dict[str, Any]]

    @property
    def reused(self) -> bool:
        """Whether the step has said that there was nothing to do."""
        return any(metadata.get("reused") is True for metadata in self.artifacts.values())

    @property
    def skipped(self) -> str | None:
        """Why the step has done nothing, in words, where it has said so."""
        found = (metadata.get(SKIPPED) for metadata in self.artifacts.values())
        return next((why for why in found if why is not None), None)


class StepError(PercmaeError):
    """A step of the pipeline failed; has the step's own exit code where it says something."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if code in (UserError.exit_code, StoreAway.exit_code) else 1


def run_pipeline(
    pipeline: Any,
    arguments: dict[str, Any],
    console: Console,
    log: TextIO,
    server: ForkServer,
) -> list[FinishedStep]:
    """Run a compiled pipeline on this machine and return its steps in the order they ended.

    Progress and notes of the steps go to ``console``; everything that they and KFP print goes to
    ``log``. server: what the steps are forked from (:func:`fork_server`). Must be called from the
    main thread: it handles SIGINT, SIGTERM and SIGHUP by asking the running steps to stop (a second
    signal kills them) and starting no more.

    Raises Interrupted after a signal, StepError when a step fails.
    """
    from kfp import local  # takes a second: after all checks

    with tempfile.TemporaryDirectory(prefix="percmae-kfp-") as folder:
        runner = _StepRunner(server, console, log, scratch=folder)
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=f"{folder}/artifacts",
            workspace_root=f"{folder}/workspace",
        )
        failure: Exception | None = None
        try:
            with _handled(runner.interrupt), _quiet(log), _launching(runner.launch):
                pipeline(**arguments)
        except RuntimeError as error:
            failure = error  # says that some task failed; runner knows which and why
        runner.check(failure)
    return runner.steps


def fork_server(modules: Sequence[str] = ()) -> ForkServer:
    """A process to fork steps from, which imports ``modules`` once for all of them."""
    return ForkServer(modules, _shared_cores())


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def _launching(launch: Any) -> Iterator[None]:
    """Have ``kfp.local`` start its processes by ``launch``."""
    from kfp.local import subprocess_task_handler as handler

    original = getattr(handler, "run_local_subprocess", None)
    if original is None:
        import kfp

        raise UserError(
            f"kfp {kfp.__version__} starts local tasks in a way percmae does not know; install "
            "kfp 2.17"
        )
    handler.run_local_subprocess = launch
    try:
        yield
    finally:
        handler.run_local_subprocess = original


@contextlib.contextmanager
def _quiet(log: TextIO) -> Iterator[None]:
    """Send what KFP prints, logs and warns to ``log``, and undo its changes to the process."""
    root, original_print = logging.getLogger(), builtins.print
    handlers, level = root.handlers[:], root.level
    try:
        with (
            contextlib.redirect_stdout(log),
            # Parallel iterations take each other's log handlers away; logging then makes one here.
            contextlib.redirect_stderr(log),
            warnings.catch_warnings(),
        ):
            # That the image is no Python image, that display names mean nothing here.
            warnings.filterwarnings("ignore", module=r"kfp\.")
            yield
    finally:
        builtins.print = original_print
        root.handlers[:] = handlers
        root.setLevel(level)


class _StepRunner:
    """The processes of the steps: starts, shows, stops and judges them."""

    def __init__(self, server: ForkServer, console: Console, log: TextIO, scratch: str) -> None:
        self.steps: list[FinishedStep] = []
        self._server = server
        self._console, self._log, self._scratch = console, log, scratch
        self._lock = threading.Lock()
        self._running: set[StepProcess] = set()
        self._signal: int | None = None
        self._failure: StepError | None = None

    def launch(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Run one task to its end and return its exit code; called by kfp.local in its threads."""
        info = _StepInfo.read(full_command)
        began, errors = time.monotonic(), StepErrors()
        code = self._run(full_command, env_vars or {}, info.label, errors)
        self._console.done(info.label)
        with self._lock:
            if code == 0 and info.name == LAST:
                return code  # has removed nothing: steps here clean up after themselves
            if code == 0:
                seconds = time.monotonic() - began
                step = FinishedStep(info.name, info.seed, seconds, info.artifacts())
                self.steps.append(step)
                how = "unchanged, reused" if step.reused else f"done in {step.seconds:.0f} s"
                if step.skipped is None:  # which it has said itself
                    self._console.line(info.label, how)
            elif self._signal is None and self._failure is None:
                self._failure = StepError(f"{info.label}: {errors.summary(code)}", code)
                self._stop(signal.SIGTERM)
        return code

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: ask the running steps to stop, and kill them when asked again."""
        again, self._signal = self._signal is not None, number
        # In a thread, because this one may hold any of the locks just now.
        threading.Thread(
            target=self._interrupt, args=(signal.SIGKILL if again else number,)
        ).start()

    def _interrupt(self, number: int) -> None:
        if number != signal.SIGKILL:
            self._console.line("stopping", "the running steps save their work (again: kill them)")
        with self._lock:
            self._stop(number)

    def check(self, failure: Exception | None) -> None:
        """Raise what there is to raise after a run; ``failure`` is KFP's own."""
        if self._signal is not None:
            raise Interrupted(
                self._signal,
                "nothing is left running; the same command goes on from where this one was stopped",
            )
        if self._failure is not None:
            raise self._failure
        if failure is not None:
            raise failure

    def _stop(self, number: int) -> None:
        for child in list(self._running):
            child.signal(number)

    def _run(
        self, command: list[str], extra: dict[str, str], label: str, errors: StepErrors
    ) -> int:
        """One process in a session of its own, so that a terminal's Ctrl-C reaches it once."""
        call = ComponentCall.read(command)
        environment = {**_shared_cores(), **os.environ, "TMPDIR": self._scratch, **extra}
        with self._lock:
            if self._signal is not None or self._failure is not None:
                return 1  # nothing new is started
            stderr, childs_end = terminal_for(self._console)
            stdout, childs_stdout = os.pipe()
            child = self._server.start(call, environment, childs_stdout, childs_end)
            self._running.add(child)
        os.close(childs_stdout)
        os.close(childs_end)
        readers = [
            threading.Thread(target=_copy, args=(os.fdopen(stdout, "rb"), label, self._log)),
            threading.Thread(target=pump, args=(stderr, label, self._console, self._log, errors)),
        ]
        for reader in readers:
            reader.start()
        code = child.wait()
        # Whatever the step has left behind goes too; it would also keep the readers waiting.
        child.signal(signal.SIGKILL)
        for reader in readers:
            reader.join()
        with self._lock:
            self._running.discard(child)
        return code


def _copy(source: IO[bytes], label: str, log: TextIO) -> None:
    with source:
        for line in source:
            log.write(f"{label} | {line.decode(errors='replace')}")


def _shared_cores() -> dict[str, str]:
    """Steps share the cores.

    Left alone, torch takes all of them in each process, and its threads spin while they wait for
    each other: a step of the demo's training takes 12 times the CPU on two cores that are shared.
    """
    threads = max(1, usable_cores() // PARALLEL)
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class _StepInfo:
    """What a task's command says about it."""

    name: str
    seed: int | None
    output: Path

    @classmethod
    def read(cls, command: list[str]) -> _StepInfo:
        """From the command's ``--function_to_execute`` and ``--executor_input``."""
        given = json.loads(command[command.index("--executor_input") + 1])
        name = command[command.index("--function_to_execute") + 1]
        inputs = given.get("inputs", {})
        values = inputs.get("parameterValues", {})
        # What a step works on: the first single artifact, if it comes from a seed's training.
        models = [
            item["artifacts"][0].get("metadata", {})
            for key, item in inputs.get("artifacts", {}).items()
            if key in ("model", "pretrained") and len(item["artifacts"]) == 1
        ]
        model = models[0] if models and name != "report" else {}
        seed = values.get("seed", model.get("seed"))
        if name in ("evaluate", "reconstruct") and "kind" in model:
            name = f"evaluate {model['kind']}"
        elif name in ("probe", "finetune"):
            untrained = "untrained" if values.get("untrained") else "pretrained"
            fraction = values.get("label_fraction", 1.0)
            name = str(Kind(name, fraction, values.get("features", untrained)))
        output = Path(given["outputs"]["outputFile"])
        return cls(name, None if seed is None else int(seed), output)

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed} {self.name}"

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """What the step has written about each of its artifacts."""
        written = json.loads(self.output.read_bytes()).get("artifacts", {})
        return {name: value["artifacts"][0].get("metadata", {}) for name, value in written.items()}
