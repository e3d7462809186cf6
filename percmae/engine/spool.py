"""A run's writes to its folder, so that training waits neither for a store nor for a disk.

A checkpoint is a snapshot in memory, taken between two steps; a thread makes an archive of it. For
a run in a folder the archive is written where it belongs, and so are figures, by whoever has them.
For a run in a store all of it lies on this machine's disk first and is sent by a second thread
(percmae.engine.outbox), for as long as the store may be away.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from percmae.config.schema import Checkpoint as Rules
from percmae.engine.checkpoint import State, write_state
from percmae.engine.outbox import Outbox, folder_of, room
from percmae.engine.snapshot import Snapshots
from percmae.errors import Interrupted, PercmaeError
from percmae.progress import warn
from percmae.runs.checkpoints import Checkpoints, Saved
from percmae.runs.record import CHECKPOINTS, RECORD
from percmae.storage import StorePath


class _Task(NamedTuple):
    """A snapshot to make an archive of, all about it but its SHA-256, and the run's record."""

    state: State
    about: dict[str, Any]
    record: str


class Spool:
    """The writes of one run; use it as a context manager, in the main process only.

    run: its folder; started: when it began, in seconds since 1970, as its record has it; rules: its
    settings of checkpoints. Entering it sends what an earlier process of this machine has left
    there, if that is newer than what the store has. Leaving it waits until everything is written
    and, after an error, until it is sent, for ``rules.grace`` seconds at most; after an
    interruption for nothing.
    """

    def __init__(self, run: StorePath, started: float, rules: Rules) -> None:
        self.run, self._rules = run, rules
        self.checkpoints = Checkpoints(run / CHECKPOINTS, rules)
        self._snapshots = Snapshots()
        self._changed = threading.Condition()
        self._task: _Task | None = None
        self._ended = self._gave_up = False
        self._failure: Exception | None = None
        self._outbox: Outbox | None = None
        if run.is_s3:
            self._outbox = Outbox(run, folder_of(run, started, rules.spool), self.checkpoints)
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self.left: Path | None = None
        """Where files lie that could not be sent, once the spool is closed."""

    def __enter__(self) -> Spool:
        self._thread.start()
        if self._outbox is None:
            self.checkpoints.latest()
            return self
        try:
            self._outbox.recover()
            self.written(None)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.written(None)
            elif isinstance(error, Exception) and not isinstance(error, Interrupted):
                with suppress(PercmaeError, OSError):  # the error that led here is to be told
                    self.written(0.0 if self._gave_up else self._rules.grace)
        finally:
            self._close()

    def put(self, path: StorePath, data: bytes) -> None:
        """Write a file of the run. Content that waits for the same file is replaced.

        Raises StoreError, also for what was given earlier and could not be written.
        """
        self.check()
        if self._outbox is None:
            path.write_bytes(data)
        else:
            self._outbox.put(self._name(path), data)

    def put_file(self, path: StorePath, local: Path) -> None:
        """The same with the content that the file ``local`` has now."""
        self.check()
        if self._outbox is None:
            path.write_file(local)
        else:
            self._outbox.put_file(self._name(path), local)

    def checkpoint(
        self,
        state: State,
        record: str,
        step: int,
        epoch: int,
        val_loss: float | None = None,
        milestone: bool = False,
    ) -> None:
        """Save a state as it is now: returns when it has been copied.

        record: the run's, as it is with this checkpoint. What was put before is written before.
        Waits for as long as the snapshot before is not on disk: there is one at a time. Raises as
        :meth:`put` does.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._task is None or self._failure)
        self.check()
        about = {
            "name": self._free_name(step),
            "step": step,
            "epoch": epoch,
            "val_loss": val_loss,
            "milestone": milestone,
        }
        task = _Task(self._snapshots.take(state), about, record)
        with self._changed:
            self._task = task
            self._changed.notify_all()

    def _free_name(self, step: int) -> str:
        """A name for an archive that the pointer does not name: what it names is not replaced.

        A step is saved twice where what was saved first lacked its validation.
        """
        taken = {saved.name for saved in self.checkpoints.kept}
        name = f"step-{step:08d}.pt"
        return name if name not in taken else f"step-{step:08d}-again.pt"

    def check(self) -> None:
        """Raise what writing or sending has met, once for all: nothing more is written then."""
        failure = self._failure or (self._outbox.failure if self._outbox else None)
        if failure is None:
            return
        if self._outbox is None or not isinstance(failure, PercmaeError):
            raise failure
        raise type(failure)(f"{failure}; {self._where()}") from failure

    @property
    def on_disk(self) -> bool:
        """Whether no snapshot is in memory any more."""
        return self._task is None

    def drain(self, seconds: float | None = None) -> bool:
        """Wait until all that was given is where it belongs; whether it is.

        Where it has to be sent, for so many seconds at most: it is on this machine's disk then.
        Raises as :meth:`check` does.
        """
        sent = self.written(seconds)
        self._gave_up = not sent
        if not sent:
            warn(f"not all of {self.run} is in the store yet; {self._where()}")
        return sent

    def written(self, seconds: float | None) -> bool:
        """:meth:`drain`, without a word about what is not sent."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._task is None or self._failure)
        while self._outbox is not None and self._outbox.waiting:
            self.check()
            now = time.monotonic()
            if until is not None and now >= until:
                return False
            self._outbox.wait(min(1.0, until - now) if until is not None else 1.0)
        self.check()
        return True

    def _close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        if self._outbox is not None and not self._outbox.close():
            self.left = self._outbox.folder

    def _name(self, path: StorePath) -> str:
        """The path below the run's folder."""
        return path.uri.removeprefix(f"{self.run.uri}/")

    def _where(self) -> str:
        assert self._outbox is not None
        return f"it lies in {self._outbox.folder}; the same command on this machine sends it first"

    def _work(self) -> None:
        """The thread: an archive of each snapshot."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._task or self._ended)
                    task = self._task
                if task is None:
                    return
                self._write(task)
                del task
                with self._changed:
                    self._task = None
                    self._changed.notify_all()
        except Exception as error:  # told by check
            with self._changed:
                self._failure, self._task = error, None
                self._changed.notify_all()

    def _write(self, task: _Task) -> None:
        if self._outbox is None:
            sha256 = write_state(self.checkpoints.folder / task.about["name"], task.state)
            dropped = self.checkpoints.point_to(Saved(sha256=sha256, **task.about))
            (self.run / RECORD).write_text(task.record)
            self.checkpoints.drop(dropped)
            return
        self._outbox.make_room()
        with room(self._outbox.folder):
            sha256 = write_state(
                self._outbox.path(f"{CHECKPOINTS}/{task.about['name']}"), task.state
            )
        self._outbox.add_checkpoint(Saved(sha256=sha256, **task.about), task.record)
