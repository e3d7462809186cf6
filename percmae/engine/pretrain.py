"""Pretraining: the verb, and the learner that runs a variant's objective."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset
from percmae.data.stream import Batch, Loader
from percmae.engine.distributed import World, mask_noise, world
from percmae.engine.loop import Learner, Loop, Micro, Plan, Terms
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.pictures import denormalise, reconstruction_grid
from percmae.engine.runs import Identity, Run, RunResult, existing_run
from percmae.engine.weights import initial_weights
from percmae.losses.objective import Objective, build_objective
from percmae.models.weights import load_strict
from percmae.progress import note

# Masks of validation and pictures never change, so that figures can be compared over steps, seeds
# and runs.
FIXED_MASK_SEED = 20221229


def versions() -> dict[str, str]:
    """Versions that a run's record names."""
    from importlib.metadata import version

    return {"torch": torch.__version__, "timm": version("timm"), "machine": platform.machine()}


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast where the config asks for it (auto: on a GPU), else nothing."""
    precision = config.trainer.precision
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def eval_loader(config: Config, dataset: Dataset, split: str, world: World) -> Loader:
    """Batches of a whole split in its own order, shared over the processes."""
    chosen = dataset.split(split)
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


def training_call(network: nn.Module, config: Config, world: World) -> nn.Module:
    """The network as training calls it: compiled and under data parallelism where asked for."""
    # Compiled inside, so that DistributedDataParallel (and its no_sync) stays on the outside.
    inner = torch.compile(network) if config.trainer.compile else network
    return world.wrap(cast("nn.Module", inner), config.trainer.strategy == "ddp")


class PretrainLearner(Learner):
    """A variant's objective under the loop."""

    def __init__(self, config: Config, objective: Objective, world: World, val: Loader) -> None:
        self.config, self.objective, self.world, self.val = config, objective, world, val
        objective.to(world.device)
        objective.wrap(lambda network: training_call(network, config, world))
        self.networks, self.calls = objective.networks, objective.calls
        self.optimizers = {
            name: build_optimizer(config.optim, parameter_groups(network, config.optim))
            for name, network in objective.networks.items()
        }
        self._shown: Tensor | None = None

    def backward(self, batch: Batch, micro: Micro) -> Terms:
        n, patches = batch.images.shape[0], self.objective.generator.patches
        mine = range(self.world.rank * n, (self.world.rank + 1) * n)
        noise = mask_noise(self.config.seed, micro.index, mine, n * self.world.size, patches)
        with autocast(self.config, self.world.device):
            return self.objective.backward(
                batch.images, noise.to(self.world.device), micro.weight, micro.step
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean of each term over the validation slice, every image under its own fixed mask."""
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for _, _, batch in self.val.batches():
            images = batch.images.to(self.world.device)
            noise = self._noise(batch.ids).to(self.world.device)
            with autocast(self.config, self.world.device):
                terms = self.objective.terms(images, noise)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(total)) + value.double() * len(images)
            total += len(images)
            if self._shown is None:
                self._shown = images[: self.config.tracking.images]
        # A process may have got no batch at all: it still takes part, with zeros.
        names = self._names(sums)
        stacked = torch.stack([*(sums.get(n, torch.zeros_like(total)) for n in names), total])
        values = self.world.sum(stacked).tolist()
        return {name: value / values[-1] for name, value in zip(names, values, strict=False)}

    def _names(self, sums: dict[str, Tensor]) -> list[str]:
        names = self.world.share(sorted(sums))
        assert isinstance(names, list)
        return names

    def _noise(self, ids: Tensor) -> Tensor:
        patches = self.objective.generator.patches
        total = len(self.val.split)
        if not hasattr(self, "_val_noise"):
            self._val_noise = mask_noise(FIXED_MASK_SEED, 0, range(total), total, patches)
        return self._val_noise[ids]

    def train(self, mode: bool) -> None:
        self.objective.train(mode)

    def picture(self) -> Tensor | None:
        if self._shown is None or not self._shown.shape[0]:
            return None
        images = self._shown
        patches = self.objective.generator.patches
        noise = mask_noise(FIXED_MASK_SEED, 0, range(len(images)), len(images), patches)
        made, mask = self.objective.reconstruct(images, noise.to(images.device))
        augment = self.config.data.augment
        return reconstruction_grid(
            denormalise(images, augment), denormalise(made, augment), mask
        ).cpu()

    def state_dict(self) -> dict[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state)


def pretrain(config: Config, data: str, to: str, resume: str = "auto") -> RunResult:
    """Pretrain on the dataset whose manifest is ``data`` into ``<to>/<run name>/``.

    resume: ``auto`` goes on with a run of this name and key, or returns it when it is complete;
    ``never`` refuses when the name is taken. Under torchrun every process calls this. Raises
    UserError for bad input, Interrupted after a signal (resumable), PercmaeError on failure.
    """
    with world(config) as here:
        dataset = here.first(lambda: Dataset.open(data))
        identity = Identity(config.run_name, config, dataset.uri, dataset.digest)
        run = here.first(lambda: existing_run(to, identity, resume))
        if run is not None and run.complete:
            note(f"{run.uri}: unchanged, reused")
            return run.result(reused=True)
        # Everything that may be refused comes before the run's folder is made.
        torch.manual_seed(config.seed)
        objective = build_objective(config)
        if config.model.init_from is not None and run is None:
            what = f"model.init_from={config.model.init_from}"
            load_strict(objective.generator, initial_weights(config.model.init_from), what)
        loader = train_loader(config, dataset, here)
        plan = Plan.make(config, len(loader.split), here.size)
        warn_of_schedule(config)
        learner = PretrainLearner(
            config, objective, here, eval_loader(config, dataset, "val", here)
        )
        if run is None:
            run = here.first(lambda: Run.create(to, identity, versions()))
        Loop(learner, config, run, loader, here, plan).run()
        return run.result()


def warn_of_schedule(config: Config) -> None:
    """Say when the whole run is warm-up."""
    optim = config.optim
    if optim.warmup_epochs and optim.warmup_epochs >= optim.epochs:
        note(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not below optim.epochs="
            f"{optim.epochs}: the learning rate never reaches its peak"
        )
