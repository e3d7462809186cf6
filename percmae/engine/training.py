"""What pretraining, fine-tuning and probing set up alike: loaders, precision, the run's folder."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from percmae.config import Config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.loop import Learner, Loop
from percmae.engine.plan import Plan
from percmae.errors import DataError
from percmae.losses.objective import Objective
from percmae.progress import note
from percmae.runs.record import Identity, Run, RunResult, existing_run


def carry_out(
    identity: Identity,
    dataset: Dataset,
    to: str,
    resume: str,
    here: World,
    learner: Callable[[bool], Learner],
) -> RunResult:
    """Train the run that ``identity`` describes below ``to``, or return the finished one.

    learner: builds what is trained; told whether the run is a new one. Everything that may be
    refused comes before the run's folder is made; a new run that fails all the same before it has
    a checkpoint leaves no folder, so that its name is free. Raises what the loop and the learner
    raise.
    """
    run = here.first(lambda: existing_run(to, identity, resume))
    if run is not None and run.complete:
        note(f"{run.uri}: unchanged, reused")
        return run.result(reused=True)
    config = identity.config
    trained = learner(run is None)
    loader = train_loader(config, dataset, here)
    plan = Plan.make(config, len(loader.split), here.size)
    _warn_of_schedule(config)
    fresh = run is None
    run = run or here.first(lambda: Run.create(to, identity, _versions()))
    try:
        Loop(trained, config, run, loader, here, plan).run()
    except Exception:
        if fresh and here.main:
            run.forget()
        raise
    return run.result()


def _versions() -> dict[str, str]:
    """Versions that a run's record names."""
    from importlib.metadata import version

    return {"torch": torch.__version__, "timm": version("timm"), "machine": platform.machine()}


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast where the config asks for it (auto: on a GPU), else nothing."""
    precision = config.trainer.precision
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def eval_loader(config: Config, dataset: Dataset, split: str, world: World) -> Loader:
    """Batches of a whole split in its own order, shared over the processes.

    Raises DataError for a split without an image.
    """
    chosen = dataset.split(split)
    if not len(chosen):
        raise DataError(f"dataset {dataset.uri}: no image for split {split}; ingest more images")
    limit = config.trainer.val_samples
    if split == "val" and limit is not None and limit < len(chosen):
        chosen = chosen.subset("val", np.arange(limit))
    return Loader(
        chosen,
        build_transform(config.data.augment, config.data.image_size, False, config.stage),
        batch_size=config.data.batch_size,
        seed=0,
        shuffle=False,
        drop_last=False,
        rank=world.rank,
        world=world.size,
        workers=0,
    )


def train_loader(config: Config, dataset: Dataset, world: World) -> Loader:
    """Batches of the training split in the order of (seed, epoch)."""
    return Loader(
        dataset.split("train"),
        build_transform(config.data.augment, config.data.image_size, True, config.stage),
        batch_size=config.data.batch_size,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        rank=world.rank,
        world=world.size,
        workers=config.data.workers,
        pin_memory=config.data.pin_memory and world.device.type == "cuda",
    )


def training_call(network: nn.Module, config: Config, world: World, compiled: bool) -> nn.Module:
    """The network as training calls it: under data parallelism, compiled where asked for."""
    # Compiled inside, so that DistributedDataParallel (and its no_sync) stays on the outside.
    inner: Any = network
    if compiled and config.trainer.compile:
        inner = torch.compile(network, mode=config.trainer.compile_mode)
    return world.wrap(cast("nn.Module", inner), config.trainer.strategy == "ddp")


def set_up(objective: Objective, config: Config, world: World) -> None:
    """Put an objective on its device, its networks called as training calls them."""
    objective.to(world.device)
    objective.wrap(
        lambda name, call: training_call(call, config, world, compiled=name == "generator"),
        lambda: autocast(config, world.device),
    )


def _warn_of_schedule(config: Config) -> None:
    """Say when the whole run is warm-up."""
    optim = config.optim
    if optim.warmup_epochs and optim.warmup_epochs >= optim.epochs:
        note(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not below optim.epochs="
            f"{optim.epochs}: the learning rate never reaches its peak"
        )
