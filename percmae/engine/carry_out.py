"""Carrying out a training: find the run or begin it, train it to its end, say what came of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version

import torch

from percmae.config import Config
from percmae.data.mixture import AnyDataset
from percmae.engine.distributed import World
from percmae.engine.learner import Learner
from percmae.engine.loaders import train_images, train_loader
from percmae.engine.loop import Loop
from percmae.engine.plan import Plan, with_smaller_steps
from percmae.engine.teller import metrics_port
from percmae.errors import StoreAway
from percmae.jobs.names import IMAGE_VARIABLE
from percmae.progress import note, warn
from percmae.runs.going_on import may_go_on
from percmae.runs.mlflow import check_client, tell
from percmae.runs.record import Identity, Run, RunResult
from percmae.storage.outage import outage, outage_seconds


def carry_out(
    identity: Identity,
    dataset: AnyDataset,
    to: str,
    run: Run | None,
    resume: str,
    world: World,
    learner: Callable[[bool], Learner],
) -> RunResult:
    """Train the run that ``identity`` describes below ``to``, or return the finished one.

    run: the one of that name that is there. learner: builds what is trained; told whether the run
    is a new one. Everything that may be refused comes before the run's folder is made; a new run
    that fails all the same before it has a checkpoint leaves no folder, so that its name is free,
    unless it is to be gone on with because its store was away.
    Raises UserError for a run that may not be gone on with, and what the loop and the learner
    raise.
    """
    longer = False
    if run is not None:
        longer = may_go_on(run, identity, resume)
        if run.complete and not longer:
            note(f"{run.uri}: unchanged, reused")
            if world.main:
                tell(run, identity.config)
            return RunResult(run, reused=True)
    config = identity.config
    metrics_port(config)  # the environment may say nonsense
    check_client(config)
    trained = learner(run is None)
    samples = len(train_images(config, dataset))
    smaller = with_smaller_steps(config, samples, world.size)
    loader = train_loader(smaller, dataset, world)
    plan = Plan.make(smaller, samples, world.size)
    if smaller is not config and world.main:
        note(
            f"data.label_fraction={config.data.label_fraction:g} leaves {samples:,} images: "
            f"steps of {plan.batch:,}"
        )
    _warn_of_schedule(config)
    fresh = run is None
    if run is None:
        run = world.first(lambda: Run.create(to, identity, _versions()))
    elif longer:
        begun_for_less = run
        run = world.first(lambda: begun_for_less.extend(identity))
    loop = Loop(trained, config, run, trained.source(loader), world, plan)
    try:
        with outage(outage_seconds(config.trainer.store_outage)):
            loop.run()
    except StoreAway:  # what is there is gone on with
        raise
    except Exception:
        if fresh and loop.spool is not None and loop.spool.left is None:
            run.forget()
        raise
    return RunResult(run, reused=False)


def _versions() -> dict[str, str]:
    """Versions that a run's record names."""
    image = os.environ.get(IMAGE_VARIABLE)
    return {
        "torch": torch.__version__,
        "timm": version("timm"),
        "machine": platform.machine(),
        **({"image": image} if image else {}),
    }


def _warn_of_schedule(config: Config) -> None:
    """Say when the whole run is warm-up."""
    optim = config.optim
    if optim.warmup_epochs and optim.warmup_epochs >= optim.epochs:
        warn(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not below optim.epochs="
            f"{optim.epochs}: the learning rate never reaches its peak"
        )
