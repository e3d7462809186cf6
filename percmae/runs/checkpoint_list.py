"""``percmae checkpoints``: which a run has, whether they are whole, and what nobody refers to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from percmae.errors import CheckpointError, DataError
from percmae.progress import progress
from percmae.runs.checkpoints import LATEST, Checkpoints
from percmae.runs.record import CHECKPOINTS, Run
from percmae.storage import Entry
from percmae.storage.collect import collect, each
from percmae.tables import byte_size, columns

DIAGNOSTIC = "diagnostic-step-"
"""How the name of what a run leaves begins that met a value that is not finite."""
_RECENT = 3600.0  # seconds in which an archive may be of a training that is under way


def listing(uri: str, as_json: bool = False) -> str:
    """The checkpoints of a run, a line each (or a list in JSON), the newest last.

    Raises DataError where there is no run or none of its checkpoints, StoreError.
    """
    checkpoints = _checkpoints(uri)
    there = {entry.name: entry for entry in checkpoints.folder.iter()}
    found: list[dict[str, Any]] = []
    for saved in checkpoints.kept:
        entry = there.get(saved.name)
        found.append(
            {
                "name": saved.name,
                "step": saved.step,
                "epoch": saved.epoch,
                "bytes": None if entry is None else entry.size,
                "val_loss": saved.val_loss,
                "kept": checkpoints.reasons(saved, checkpoints.kept),
                "when": None if entry is None else _when(entry),
                "sha256": saved.sha256,
            }
        )
    if as_json:
        return json.dumps(found)
    rows = [
        (
            row["name"],
            f"{row['step']:,}",
            f"{row['epoch']:,}",
            "missing" if row["bytes"] is None else byte_size(row["bytes"]),
            "" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
            ", ".join(row["kept"]),
            row["when"] or "",
        )
        for row in found
    ]
    return columns([("name", "step", "epoch", "size", "val loss", "kept as", "when"), *rows])


def verified(uri: str) -> str:
    """Fetch every checkpoint of a run and compare its SHA-256: a line each.

    Raises CheckpointError naming those that are damaged or missing, and as :func:`listing` does.
    """
    checkpoints = _checkpoints(uri)
    there = {entry.name for entry in checkpoints.folder.iter()}
    lines, damaged = [], []
    for saved in progress(checkpoints.kept, desc="verify", unit="checkpoint"):
        fault = "missing"
        if saved.name in there:
            path = checkpoints.folder / saved.name
            fault = "" if path.copy_into(None, saved.sha256) == saved.sha256 else "damaged"
        if fault:
            damaged.append(f"{saved.name} ({fault})")
        lines.append(f"{saved.name}  sha256:{saved.sha256}  {fault or 'whole'}")
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(lines)} checkpoints of run {uri} cannot be gone on with: "
            f"{', '.join(damaged)}; restore them, or start over under another --tag"
        )
    return "\n".join(lines)


def collected(uri: str, delete: bool = False, force: bool = False) -> str:
    """Files among a run's checkpoints that its pointer does not name, deleted if so asked.

    A crash leaves them. Diagnostics of steps that were not finite stay. Raises DataError where
    there is no run, UserError for files of less than an hour, which may be of a training that is
    under way, unless ``force``.
    """
    run = Run.open(uri)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, run.config.checkpoint)
    checkpoints.latest()
    wanted = {LATEST, *(saved.name for saved in checkpoints.kept)}
    found = [
        entry
        for entry in checkpoints.folder.iter()
        if entry.name not in wanted and not entry.name.startswith(DIAGNOSTIC)
    ]
    young = "less than an hour old: the training may be under way; wait for it, or add --force"
    return collect(
        each(found),
        delete,
        "the pointer names none of them",
        None if force else (_RECENT, young),
    )


def _checkpoints(uri: str) -> Checkpoints:
    run = Run.open(uri)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, run.config.checkpoint)
    if checkpoints.latest() is None:
        raise DataError(f"run {uri} has no checkpoint yet; train it first")
    return checkpoints


def _when(entry: Entry) -> str:
    when = datetime.fromtimestamp(entry.path.stat().modified, UTC)
    return when.strftime("%Y-%m-%d %H:%M")
