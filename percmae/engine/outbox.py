"""Files of a run that lie on this machine's disk until they are in its store.

The folder has each file under its name in the run. A checkpoint is an archive and, written when
that is whole, ``<archive>.json`` with all that is needed to publish it: so what a killed process
leaves can be told apart, and the next start on this machine sends it (:meth:`Outbox.recover`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from percmae.errors import StoreError, UserError
from percmae.progress import note, warn
from percmae.runs.checkpoints import Checkpoints, Saved
from percmae.runs.files import Part, parse
from percmae.runs.record import CHECKPOINTS, RECORD
from percmae.storage import StorePath
from percmae.storage.hashing import PIECE, Hashing
from percmae.storage.path import local_path

_ASIDE = ".json"
_LOCK = ".lock"
# A process that was killed with the others of its job may take so long to be gone.
_ANOTHER = 30.0
_WAITING = 2
"""Archives on disk beside the one that is being sent."""


class Sending(Part):
    """``<archive>.json``: a checkpoint that is whole, and the run's record as it is with it."""

    saved: Saved
    record: str


class Outbox:
    """The files of one run on their way; a thread sends them, figures before checkpoints.

    run: its folder in the store; folder: theirs here, of this run alone; checkpoints: the list that
    what has been sent is published in. Of a file given again while it waits only the later content
    is sent, and of checkpoints that wait only the last one and milestones. Raises UserError where
    the folder cannot be used.
    """

    def __init__(self, run: StorePath, folder: Path, checkpoints: Checkpoints) -> None:
        self.folder, self._run, self._checkpoints = folder, run, checkpoints
        self._changed = threading.Condition()
        self._files: dict[str, int] = {}  # by name, how often it was given
        self._archives: list[Sending] = []
        self._sending: str | None = None
        self._given = 0
        self._ended = False
        self._told = False
        self.failure: Exception | None = None
        self._lock = _own(folder)
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)

    def recover(self) -> None:
        """Take up what an earlier process has left, and begin to send.

        All of it if it has a whole checkpoint that is newer than the store's newest, else nothing:
        the run has gone on since, or figures are beyond its checkpoint and will be made again.
        Raises DataError for a damaged pointer in the store, StoreError.
        """
        left = self._left()
        latest = self._checkpoints.latest()
        newer = [s for s in left if latest is None or s.saved.step > latest.step]
        if newer:
            step = newer[-1].saved.step
            note(f"{self._run}: sending what an earlier process left in {self.folder}, step {step}")
            aside = {
                f"{CHECKPOINTS}/{s.saved.name}{ending}" for s in left for ending in ("", _ASIDE)
            }
            for entry in list(StorePath(self.folder).iter()):
                if entry.name not in aside and entry.name != _LOCK:
                    if entry.name.startswith(f"{CHECKPOINTS}/"):
                        entry.path.delete()  # an archive that nothing says is whole
                    else:
                        self._files[entry.name] = 0
            self._archives = newer
        else:
            self._clear()
        self._thread.start()

    def put(self, name: str, data: bytes) -> None:
        """A file of this name in the run, to be sent. Raises StoreError where it cannot be kept."""
        with room(self.folder):
            self.path(name).write_bytes(data)
        self._add(name)

    def put_file(self, name: str, local: Path) -> None:
        """The same with the content that the file ``local`` has now."""
        with room(self.folder):
            self.path(name).write_file(local)
        self._add(name)

    def path(self, name: str) -> StorePath:
        """Where a file of this name lies here."""
        return StorePath(self.folder) / name

    def make_room(self) -> None:
        """Before a further archive is written: at most one, a milestone if any, waits beside it."""
        with self._changed:
            while len(waiting := self._waiting) >= _WAITING:
                plain = [s for s in waiting if not s.saved.milestone]
                self._drop((plain or waiting)[0])

    def add_checkpoint(self, saved: Saved, record: str) -> None:
        """An archive that lies here whole, to be sent and published, with the run's record."""
        sending = Sending(saved=saved, record=record)
        with room(self.folder):
            self._aside(saved).write_text(sending.model_dump_json())
        with self._changed:
            self._archives.append(sending)
            for older in self._waiting[:-1]:
                if not older.saved.milestone:
                    self._drop(older)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Files that are not in the store yet, whole or at all."""
        with self._changed:
            return len(self._files) + len(self._archives)

    def wait(self, seconds: float) -> None:
        """Until something has been sent or has failed, at most so long."""
        with self._changed:
            if self._files or self._archives:
                self._changed.wait(seconds)

    def close(self) -> bool:
        """Send no more; whether nothing is left here. The folder goes if so."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            empty = not (self._files or self._archives)
        if empty:
            if self._thread.ident is not None:
                self._thread.join()
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        return empty

    def _add(self, name: str) -> None:
        with self._changed:
            self._given += 1
            self._files[name] = self._given
            self._changed.notify_all()

    def _work(self) -> None:
        """The thread: one file after the other, until the end or the first failure."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self._files or self._archives)
                    if self._ended:
                        return
                    name = next(iter(self._files), None)
                    given = self._files.get(name or "")
                    sending = self._archives[0] if name is None else None
                    self._sending = sending.saved.name if sending else None
                if sending is not None:
                    self._send_checkpoint(sending)
                elif name is not None:
                    (self._run / name).write_file(self.folder / name)
                with self._changed:
                    self._sending = None
                    if sending is not None:
                        self._remove(sending)
                    elif name is not None and self._files[name] == given:
                        del self._files[name]
                        self.path(name).delete()
                    self._changed.notify_all()
        except Exception as error:  # told by whoever asks: see percmae.engine.spool
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def _send_checkpoint(self, sending: Sending) -> None:
        """The archive, then the pointer to it, then the record; what no rule keeps goes last."""
        saved = sending.saved
        target = self._checkpoints.folder / saved.name
        here = self.path(f"{CHECKPOINTS}/{saved.name}")
        with here.open() as source, target.create() as stream:
            hashing = Hashing(stream)
            shutil.copyfileobj(source, hashing, PIECE)
            if hashing.sha256 != saved.sha256:
                raise StoreError(
                    f"{here}: is not what was written there, the disk or its memory is at fault; "
                    "set checkpoint.spool to another disk"
                )
        sent, size = target.stat().size, here.stat().size
        if sent != size:
            raise StoreError(f"{target}: {size} bytes were sent, and the store has {sent}")
        dropped = self._checkpoints.point_to(saved)
        (self._run / RECORD).write_text(sending.record)
        self._checkpoints.drop(dropped)

    @property
    def _waiting(self) -> list[Sending]:
        return [s for s in self._archives if s.saved.name != self._sending]

    def _drop(self, sending: Sending) -> None:
        what = f"checkpoint of step {sending.saved.step}"
        if sending.saved.milestone:
            warn(f"{what}, a milestone, is given up: {self._why()}")
        elif not self._told:
            self._told = True
            note(f"{what} is passed over, as others may be: {self._why()}")
        self._remove(sending)

    def _why(self) -> str:
        return f"{self._run} takes checkpoints more slowly than they are made"

    def _remove(self, sending: Sending) -> None:
        self._archives.remove(sending)
        self._aside(sending.saved).delete()
        self.path(f"{CHECKPOINTS}/{sending.saved.name}").delete()

    def _aside(self, saved: Saved) -> StorePath:
        return self.path(f"{CHECKPOINTS}/{saved.name}{_ASIDE}")

    def _left(self) -> list[Sending]:
        """Whole checkpoints that lie here, by step."""
        found = []
        for entry in (StorePath(self.folder) / CHECKPOINTS).iter():
            if entry.name.endswith(_ASIDE):
                sending = parse(Sending, entry.path.read_bytes(), entry.path.uri, "delete it")
                found.append(sending)
        return sorted(found, key=lambda sending: sending.saved.step)

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink(missing_ok=True)


def folder_of(run: StorePath, started: float, spool: str | None) -> Path:
    """The folder of the run that began then, below ``spool`` or TMPDIR, also after a restart."""
    mark = hashlib.sha256(f"{run.uri}\n{started!r}".encode()).hexdigest()[:16]
    below = tempfile.gettempdir() if spool is None else local_path(spool, "checkpoint.spool")
    return Path(below) / f"percmae-spool-{mark}"


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Tells, where writing below a folder fails, which setting has it. Raises StoreError."""
    try:
        yield
    except StoreError as error:
        raise StoreError(
            f"{error}: checkpoints and figures lie there until they are in the store; make room, "
            "or set checkpoint.spool to another folder"
        ) from error


def _own(folder: Path) -> int:
    """Make the folder, for this user and this process alone; the lock on it."""
    until = time.monotonic() + _ANOTHER
    while True:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise UserError(f"{folder} belongs to another user: set checkpoint.spool")
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(
                f"cannot keep in {folder} what is to be sent: {error.strerror}; set "
                "checkpoint.spool to a folder with room for three checkpoints"
            ) from None
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Else the one who had it has removed it since.
            if os.fstat(lock).st_ino == os.stat(folder / _LOCK).st_ino:
                return lock
        os.close(lock)
        if time.monotonic() > until:
            raise UserError(
                f"{folder} is in use: another process of this machine trains the same run"
            )
        time.sleep(0.1)
