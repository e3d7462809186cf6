"""Which checkpoints a run has: one pointer names the newest and lists those kept; no torch needed.

``checkpoints/step-00000120.pt`` is an archive (percmae.engine.checkpoint); the pointer,
``checkpoints/latest.json``, names the newest one with its SHA-256, and lists those kept. It is
written after the archive and replaced atomically, and what it no longer lists is deleted after
that: a crash at any moment leaves a pointer to a whole checkpoint.
"""

from __future__ import annotations

import time

from percmae.config.schema import Checkpoint as Rules
from percmae.runs.files import Part, parse
from percmae.storage import StorePath

LATEST = "latest.json"


class Saved(Part):
    """One checkpoint in the list: file name, SHA-256 in hex, place in the run, validation loss."""

    name: str
    sha256: str
    step: int
    epoch: int
    val_loss: float | None = None
    milestone: bool = False


class Pointer(Saved):
    """``latest.json``: the newest, its file name once more as ``checkpoint``, and those kept."""

    checkpoint: str
    kept: list[Saved]


class Checkpoints:
    """The list of one run; ``folder`` is ``<run>/checkpoints``.

    kept: by the order in which they were saved; of a run that is gone on with after :meth:`latest`.
    """

    def __init__(self, folder: StorePath, rules: Rules) -> None:
        self.folder, self.rules = folder, rules
        self.kept: list[Saved] = []
        self.moved: float | None = None
        """When this process has last moved the pointer, in seconds of ``time.monotonic``."""

    def latest(self) -> Saved | None:
        """What the pointer names, or None when nothing was saved yet; fills ``kept``.

        Raises DataError for a damaged pointer.
        """
        pointer = self.folder / LATEST
        if not pointer.exists():
            return None
        found = parse(Pointer, pointer.read_bytes(), pointer.uri, "the file is damaged")
        self.kept = found.kept
        return Saved(
            **{**found.model_dump(include=set(Saved.model_fields)), "name": found.checkpoint}
        )

    def point_to(self, saved: Saved) -> list[Saved]:
        """Move the pointer to a checkpoint that is there, whole; those that no rule keeps now."""
        everything = [s for s in self.kept if s.step != saved.step] + [saved]
        kept = [s for s in everything if self.reasons(s, everything)]
        pointer = Pointer(**saved.model_dump(), checkpoint=saved.name, kept=kept)
        (self.folder / LATEST).write_json(pointer.model_dump())
        dropped = [s for s in self.kept if s not in kept]
        self.kept, self.moved = kept, time.monotonic()
        return dropped

    def drop(self, dropped: list[Saved]) -> None:
        """Delete archives that the pointer no longer lists."""
        for old in dropped:
            (self.folder / old.name).delete()

    def reasons(self, saved: Saved, everything: list[Saved]) -> list[str]:
        """Why a checkpoint of those is kept; empty where no rule keeps it."""
        scored = sorted(
            (s for s in everything if s.val_loss is not None), key=lambda s: (s.val_loss, s.step)
        )
        found = {
            "latest": saved in everything[-1:],
            "last": saved in everything[-self.rules.keep_last : -1],
            "best": saved in scored[: self.rules.keep_best],
            "milestone": saved.milestone,
        }
        return [reason for reason, holds in found.items() if holds]
