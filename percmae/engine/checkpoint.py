"""Checkpoints in the store: saved whole, checked when read, pruned by rule, named by one pointer.

``checkpoints/step-00000120.pt`` is a torch archive of tensors and plain values; the file
``checkpoints/latest.json`` names the newest one with its SHA-256, and lists those kept. The pointer
is written after the archive and replaced atomically, so a crash at any moment leaves a pointer to a
whole checkpoint. Reading never runs pickled code (``weights_only``).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
import warnings
from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import Any

import torch

from percmae.config.schema import Checkpoint as Rules
from percmae.errors import CheckpointError, UnsafeFileError, UserError
from percmae.storage import StorePath

State = dict[str, Any]
LATEST = "latest.json"


@dataclass(frozen=True)
class Saved:
    """One checkpoint in the list: file name, checksum, place in the run, validation loss."""

    name: str
    sha256: str
    step: int
    epoch: int
    val_loss: float | None = None
    milestone: bool = False


class Checkpoints:
    """The checkpoints of one run; ``folder`` is ``<run>/checkpoints``."""

    def __init__(self, folder: StorePath, rules: Rules) -> None:
        self.folder, self.rules = folder, rules
        self.kept: list[Saved] = []

    def save(
        self, state: State, step: int, epoch: int, val_loss: float | None, milestone: bool
    ) -> Saved:
        """Write a checkpoint, move the pointer to it, drop those no rule keeps."""
        name = f"step-{step:08d}.pt"
        data = archive(state)
        saved = Saved(name, hashlib.sha256(data).hexdigest(), step, epoch, val_loss, milestone)
        (self.folder / name).write_bytes(data)
        everything = [s for s in self.kept if s.step != step] + [saved]
        self.kept = self._choose(everything)
        (self.folder / LATEST).write_json(
            {**asdict(saved), "checkpoint": name, "kept": [asdict(s) for s in self.kept]}
        )
        for old in everything:
            if old not in self.kept:
                (self.folder / old.name).delete()
        return saved

    def _choose(self, saved: list[Saved]) -> list[Saved]:
        scored = sorted(
            (s for s in saved if s.val_loss is not None), key=lambda s: (s.val_loss, s.step)
        )
        keep = {s.name for s in saved if s.milestone}
        keep |= {s.name for s in scored[: self.rules.keep_best]}
        keep |= {s.name for s in saved[-self.rules.keep_last :]}
        return [s for s in saved if s.name in keep]

    def load_latest(self) -> State | None:
        """The state the pointer names, or None when nothing was saved yet."""
        pointer = self.folder / LATEST
        if not pointer.exists():
            return None
        record = pointer.read_json()
        self.kept = [Saved(**entry) for entry in record["kept"]]
        return read_state(self.folder / record["checkpoint"], record["sha256"])


def archive(state: State) -> bytes:
    """A state as a torch archive."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(path: StorePath, sha256: str | None = None) -> State:
    """Tensors and plain values of a torch archive, on the CPU.

    Raises CheckpointError when the checksum differs, when it is not such an archive, or when it
    would need to run code to be read.
    """
    what = f"checkpoint {path}"
    fix = "restore it or start over under another --tag"
    return torch_dict(checked_bytes(path, what, sha256, fix)[0], what, fix)


def checked_bytes(path: StorePath, what: str, sha256: str | None, fix: str) -> tuple[bytes, str]:
    """A file's content and its SHA-256 in hex. Raises CheckpointError when it cannot be read or its
    checksum is not ``sha256``; ``fix`` says what to do then."""
    try:
        data = path.read_bytes(is_whole=lambda data: sha256 in (None, _sha256(data)))
    except UserError as error:
        raise CheckpointError(f"{what}: cannot be read ({error})") from None
    found = _sha256(data)
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{what}: its SHA-256 is {found}, not {sha256}; it is damaged or another file: {fix}"
        )
    return data, found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def torch_dict(data: bytes, what: str, fix: str = "fetch it again") -> State:
    """The dictionary in a torch archive of either format, read without running pickled code.

    Raises UnsafeFileError for a pickle of anything but plain values, CheckpointError for any other
    file; both name ``what``. ``fix`` says how to get a damaged file whole.
    """
    try:
        # The official MAE code keeps its command line beside the weights: a Namespace holds plain
        # values and runs nothing.
        # Its guesses at what is wrong with a pickle it then refuses are no use to anyone here.
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes make the parser raise whatever it stumbles over.
        ended = isinstance(error, EOFError) or "unexpected EOF" in str(error)
        if ended or _is_cut_off(data):
            raise CheckpointError(f"{what}: a torch file that is cut off; {fix}") from None
        if isinstance(error, pickle.UnpicklingError):
            held = re.search(r"GLOBAL ([\w.]+)", str(error))
            told = f" (it holds {held[1]})" if held else ""
            raise UnsafeFileError(
                f"{what}: refused, it is no plain archive of tensors{told}, and opening it could "
                "run code; where you trust it, save its state_dict() alone with torch.save"
            ) from None
        raise CheckpointError(
            f"{what}: not a torch checkpoint, or a damaged one ({first_line(error)}); {fix}"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{what}: expected a dictionary of tensors")
    return state


def _is_cut_off(data: bytes) -> bool:
    """Whether a pickle among the first of a file has no end; nothing is run to see it."""
    stream = io.BytesIO(data)
    try:
        # torch's older format: a magic number, a version, sizes of numbers, then the state.
        for _ in range(4 if data[:1] == b"\x80" else 0):
            if stream.tell() < len(data):
                for _operation in pickletools.genops(stream):
                    pass
    except ValueError:
        return stream.tell() == len(data)
    return False


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for a message of one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
