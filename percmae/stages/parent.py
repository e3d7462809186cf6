"""What ``--run`` of a probe or fine-tuning names: a run, or a file of weights."""

from __future__ import annotations

import importlib.util

from percmae.errors import DataError, UserError
from percmae.runs.parent import Parent
from percmae.runs.record import RECORD, Run
from percmae.storage import StorePath


def parent_of(uri: str) -> Parent:
    """Raises DataError where there is neither, CheckpointError for a file of something else."""
    path = StorePath(uri)
    try:
        return Run.open(uri)
    except DataError:
        if (path / RECORD).exists():
            raise
    if not path.exists():
        raise DataError(
            f"--run {uri}: there is neither a run (a folder with {RECORD}) nor a file of weights; "
            "give what the pretraining printed as its last line, or a file"
        )
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"--run {uri} is a file of weights, and there is no torch here to read it")
    # Reading weights takes torch, which a run's record does not.
    from percmae.engine.parents import weights_file

    return weights_file(uri)
