"""Steps whose work is done by a job in the cluster: look in the store, launch, read the result.

The other side of what ``percmae.stages.steps`` does in its own process; needs no torch.
"""

from __future__ import annotations

from percmae.config import Config
from percmae.config.naming import Features
from percmae.data.mixture import open_data, open_one
from percmae.errors import PercmaeError
from percmae.jobs.launcher import launch
from percmae.jobs.work import command, training
from percmae.progress import note
from percmae.registry.model import Reference, Version
from percmae.registry.moves import listed
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import EvaluationResult, stored_evaluation
from percmae.runs.going_on import may_go_on
from percmae.runs.record import Run, RunResult, begun, identity_of
from percmae.stages.placement import Placement


def train(
    config: Config,
    data: str,
    to: str,
    parent: Run | None,
    features: Features,
    placement: Placement,
) -> RunResult:
    """One training by a job; a finished run of the same config, data and parent is reused.

    Raises what :func:`percmae.jobs.launcher.launch` raises, and UserError when the run's name is
    taken by another config.
    """
    settings = placement.settings(config.stage)
    assert settings is not None, "only called for a launcher"
    name = config.run_name if parent is None else config.name_on(features)
    given = open_data(data) if parent is None else open_one(data, config.stage)
    earlier, dataset = begun(to, name, given)
    identity = identity_of(config, dataset, parent, features)
    if earlier is not None:
        longer = may_go_on(earlier, identity, "auto")
        if earlier.complete and not longer:
            note(f"{earlier.uri}: unchanged, reused")
            return RunResult(earlier, reused=True)
    if parent is None:
        work = training(config, data, to)
    else:
        base = downstream_config(parent, config.stage, config.recipe, features=features)
        work = training(config, data, to, parent.uri, features, base)
    launch(work, settings, placement.pipeline_run)
    finished = Run.find(to, identity.name)
    if finished is None or not finished.complete:
        raise _not_there(f"there is no finished run {identity.name} below {to}")
    return RunResult(finished, reused=False)


def register(run: str, reference: Reference, placement: Placement) -> Version:
    """A version of a model, made of a run by a job; the one that there is of it already.

    Raises what :func:`percmae.jobs.launcher.launch` raises.
    """
    settings = placement.settings("evaluate")
    assert settings is not None, "only called for a launcher"
    key = Run.open(run).key
    if (there := listed(reference, key)) is not None:
        return there
    work = command("models", reference.name, "add", reference.path.uri, "--run", run)
    launch(work, settings, placement.pipeline_run)
    added = listed(reference, key)
    if added is None:
        raise _not_there(f"model {reference.path} has no version of run {run}")
    return added


def evaluate(run: str, data: str, placement: Placement) -> EvaluationResult:
    """A run's figures on the test set by a job; those of the same weights and data are reused.

    Raises what :func:`percmae.jobs.launcher.launch` raises, and UserError for a run that is not
    complete.
    """
    settings = placement.settings("evaluate")
    assert settings is not None, "only called for a launcher"
    opened, dataset = Run.open(run), open_data(data)
    earlier = stored_evaluation(opened, dataset)
    if earlier is not None:
        return EvaluationResult(earlier, reused=True)
    name = run.rstrip("/").rpartition("/")[2]
    work = command("evaluate", name, "--run", run, "--data", data)
    launch(work, settings, placement.pipeline_run)
    finished = stored_evaluation(opened, dataset)
    if finished is None:
        raise _not_there(f"run {run} has no evaluation")
    return EvaluationResult(finished, reused=False)


def _not_there(what: str) -> PercmaeError:
    return PercmaeError(
        f"the job ended well, but {what}: do the job and this step use the same store?"
    )
