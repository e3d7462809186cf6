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
from dataclasses import asdict, dataclass
from typing import Any

import torch

from percmae.config.schema import Checkpoint as Rules
from percmae.errors import CheckpointError, UserError
from percmae.storage import StorePath

State = dict[str, Any]


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
        (self.folder / "latest.json").write_json(
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
        pointer = self.folder / "latest.json"
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
    try:
        data = path.read_bytes()
    except UserError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error})") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            f"checkpoint {path}: its SHA-256 is not the recorded one; it is damaged, so restore it "
            "or start over under another --tag"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"checkpoint {path}: refused, it is not a plain archive of tensors (opening it could "
            "run code); export the tensors with torch.save(state_dict) first"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {path}: not a torch checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path}: expected a dictionary of tensors")
    return state
