"""What a checkpoint holds, and how a training goes on from it.

Format 1 (before percmae wrote a number) had step, seconds, metrics, networks, optimizers and
learner; format 2 says as well what it is of: the run's key, the digests of config and dataset, all
settings, and which percmae wrote it. :func:`migrated` makes the newest format of an older one.
"""

from __future__ import annotations

from typing import Any

from percmae import __version__
from percmae.engine.checkpoint import State, read_state
from percmae.engine.learner import Learner
from percmae.engine.snapshot import with_tensors
from percmae.errors import CheckpointError, UserError
from percmae.runs.checkpoints import Checkpoints
from percmae.runs.going_on import may_hold
from percmae.runs.record import Run

FORMAT = 2


def state_of(run: Run, learner: Learner, progress: dict[str, Any]) -> State:
    """The state between two steps; its tensors are those in use, to be copied before the next.

    progress: step, seconds and metrics of the training.
    """
    record = run.record
    return {
        "format": FORMAT,
        "percmae": __version__,
        "key": record.key,
        "config_digest": record.config_digest,
        "data_digest": record.data.digest,
        "config": record.config,
        **progress,
        "networks": {k: v.state_dict() for k, v in learner.networks.items()},
        "optimizers": {k: v.state_dict() for k, v in learner.optimizers.items()},
        "learner": learner.state_dict(),
    }


def latest_state(checkpoints: Checkpoints, run: Run) -> State | None:
    """The newest checkpoint of the run, in the newest format; None when nothing was saved yet.

    Raises CheckpointError for one that is damaged, of a later percmae or of another run, naming
    what differs.
    """
    latest = checkpoints.latest()
    if latest is None:
        return None
    path = checkpoints.folder / latest.name
    state = migrated(read_state(path, latest.sha256), f"checkpoint {path}")
    try:
        may_hold(run, state["data_digest"], state["config"])
    except UserError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return state


def put_back(learner: Learner, state: State) -> None:
    """Give networks, optimisers and learner the state of a checkpoint."""
    for name, network in learner.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in learner.optimizers.items():
        # On a CPU the optimiser keeps the tensors it is given, which are the archive's.
        own = with_tensors(state["optimizers"][name], lambda tensor: tensor.clone())
        optimizer.load_state_dict(own)
    learner.load_state_dict(with_tensors(state["learner"], lambda tensor: tensor.clone()))


def migrated(state: State, what: str) -> State:
    """A checkpoint's state in the newest format. Raises CheckpointError for that of a later one."""
    found = state.get("format", 1)
    if found == 1:
        # It says nothing of what it is of; the run's record does.
        nothing = dict.fromkeys(("percmae", "key", "config_digest", "data_digest", "config"))
        return {**state, **nothing, "format": FORMAT}
    if found != FORMAT:
        raise CheckpointError(
            f"{what}: of format {found}, written by percmae {state.get('percmae', 'of later')}; "
            f"this one, {__version__}, knows formats up to {FORMAT}: use that version or later"
        )
    return state
