"""Steps whose work is done by a job in the cluster: look in the store, launch, read the result.

The other side of what ``percmae.stages.steps`` does in its own process; needs no torch.
"""

from __future__ import annotations

from typing import Any

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.errors import PercmaeError
from percmae.jobs.launcher import launch
from percmae.jobs.work import command, training
from percmae.progress import note
from percmae.runs.downstream import downstream_config
from percmae.runs.record import Run, RunResult, existing_run, identity_of, stored_evaluation
from percmae.stages.placement import Placement


def train(
    config: Config, data: str, to: str, run: str | None, untrained: bool, placement: Placement
) -> RunResult:
    """One training by a job; a finished run of the same config, data and parent is reused.

    Raises what :func:`percmae.jobs.launcher.launch` raises, and UserError when the run's name is
    taken by another config.
    """
    settings = placement.settings(config.stage)
    assert settings is not None, "only called for a launcher"
    dataset, parent = Dataset.open(data), Run.open(run) if run is not None else None
    identity = identity_of(config, dataset, parent, untrained)
    earlier = existing_run(to, identity, "auto")
    if earlier is not None and earlier.complete:
        note(f"{earlier.uri}: unchanged, reused")
        return earlier.result(reused=True)
    base = downstream_config(run, config.stage, config.recipe) if run is not None else None
    launch(training(config, data, to, run, untrained, base), settings, placement.pipeline_run)
    finished = Run.find(to, identity)
    if finished is None or not finished.complete:
        raise PercmaeError(
            f"the job ended well, but there is no finished run {identity.name} below {to}: do the "
            "job and this step use the same store?"
        )
    return finished.result()


def evaluate(run: str, data: str, placement: Placement) -> tuple[dict[str, Any], bool]:
    """A run's figures on the test set by a job, and whether earlier ones were reused."""
    settings = placement.settings("evaluate")
    assert settings is not None, "only called for a launcher"
    earlier = stored_evaluation(run, data)
    if earlier is not None:
        return earlier, True
    name = run.rstrip("/").rpartition("/")[2]
    work = command("evaluate", name, "--run", run, "--data", data)
    launch(work, settings, placement.pipeline_run)
    finished = stored_evaluation(run, data)
    if finished is None:
        raise PercmaeError(
            f"the job ended well, but run {run} has no evaluation: do the job and this step use "
            "the same store?"
        )
    return finished, False
