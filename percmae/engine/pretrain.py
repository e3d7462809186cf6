"""Pretraining: the verb, and the learner that runs a variant's objective."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.data.batch import Batch
from percmae.data.mixture import open_data
from percmae.data.stream import Loader
from percmae.engine.calls import set_up
from percmae.engine.carry_out import carry_out
from percmae.engine.contest import Contest
from percmae.engine.distributed import World, distributed
from percmae.engine.features import feature_network
from percmae.engine.knn import Judge, build_judge
from percmae.engine.learner import Learner
from percmae.engine.loaders import eval_loader
from percmae.engine.optim import Group, build_optimizer, parameter_groups
from percmae.engine.pictures import (
    denormalise,
    makes_whole_images,
    reconstruction_grid,
    scales_grid,
)
from percmae.engine.signals import together
from percmae.engine.weights import initial_weights
from percmae.losses.build import build_objective
from percmae.losses.draws import Draws
from percmae.losses.objective import Micro, Objective, Terms
from percmae.models.weights import load_generator
from percmae.progress import note
from percmae.runs.record import RunResult, begun, identity_of
from percmae.storage.outage import outage

FIXED_MASK_SEED = 20221229


def fixed_draws(rows: int, device: torch.device) -> Draws:
    """Of masks that never change, so that figures compare over steps, seeds and runs."""
    return Draws(FIXED_MASK_SEED, 0, range(rows), device)


class PretrainLearner(Learner):
    """A variant's objective under the loop; ``judge`` tells of its encoder at each validation."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        world: World,
        val: Loader,
        judge: Judge | None = None,
    ) -> None:
        self.config, self.objective, self.world, self.val = config, objective, world, val
        self.judge = judge
        set_up(objective, config, world)
        self.networks, self.calls = objective.networks, objective.calls
        self.optimizers = {
            name: build_optimizer(config.optim, self._groups(name, network))
            for name, network in objective.networks.items()
        }
        self._shown: Tensor | None = None
        self._contest = Contest(config)

    def _groups(self, name: str, network: nn.Module) -> list[Group]:
        """A network's parameter groups; the discriminator may have a rate of its own."""
        groups = parameter_groups(network, self.config.optim)
        own = self.config.discriminator.lr
        if name == "discriminator" and own is not None:
            for group in groups:
                group["lr_scale"] *= own / self.config.optim.lr
        return groups

    def backward(self, batch: Batch, micro: Micro) -> Terms:
        n, patches = batch.images.shape[0], self.objective.generator.patches
        mine = range(self.world.rank * n, (self.world.rank + 1) * n)
        draws = Draws(self.config.seed, micro.index, mine, self.world.device)
        return self.objective.backward(batch.images, draws.mask_noise(patches), micro, draws)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean of each term over the validation slice, every image under its own fixed mask.

        With what the judge tells of the encoder: ``rankme``, ``knn_top1``.
        """
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for _, _, batch in together(self.val.batches(), self.world):
            images = batch.images
            noise = self._val_noise[batch.ids]
            terms = self.objective.terms(images, noise)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(total)) + value.double() * len(images)
            total += len(images)
            if self._shown is None:
                self._shown = images[: self.config.tracking.images]
        # A process may have got no batch at all: it still takes part, with zeros.
        names = self.world.share(sorted(sums))
        stacked = torch.stack([*(sums.get(n, torch.zeros_like(total)) for n in names), total])
        values = self.world.sum(stacked).tolist()
        means = {name: value / values[-1] for name, value in zip(names, values, strict=False)}
        if self.judge is not None:
            means |= self.judge(self.objective.generator)
        return means

    @cached_property
    def _val_noise(self) -> Tensor:
        patches = self.objective.generator.patches
        return fixed_draws(len(self.val.split), self.world.device).mask_noise(patches)

    def train(self, mode: bool) -> None:
        self.objective.train(mode)

    def remark(self, values: Mapping[str, float], steps: int, epoch: int) -> str | None:
        accuracy = values.get("d_accuracy")
        return None if accuracy is None else self._contest.remark(accuracy, steps, epoch)

    def pictures(self) -> dict[str, Tensor]:
        if self._shown is None or not self._shown.shape[0]:
            return {}
        images = self._shown
        patches = self.objective.generator.patches
        noise = fixed_draws(len(images), images.device).mask_noise(patches)
        reconstructed, mask = self.objective.reconstruct(images, noise)
        augment = self.config.data.augment
        originals = denormalise(images, augment)
        scales = [denormalise(image, augment) for image in reconstructed]
        whole = makes_whole_images(self.config)
        pictures = {"reconstruction": reconstruction_grid(originals, scales[0], mask, whole)}
        if len(scales) > 1:
            pictures["scales"] = scales_grid(originals, scales)
        return {name: picture.cpu() for name, picture in pictures.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state)


@outage()
def pretrain(config: Config, data: str, to: str, resume: str = "auto") -> RunResult:
    """Pretrain on the dataset whose manifest is ``data`` into ``<to>/<run name>/``.

    data: of several datasets all their manifests, in one text (:mod:`percmae.data.addresses`); no
    labels are needed. resume: ``auto`` goes on with a run of this name and key, or returns it when
    it is complete; ``never`` refuses when the name is taken. Under torchrun every process calls
    this. Raises UserError for bad input, Interrupted after a signal (resumable), PercmaeError on
    failure.
    """
    with distributed(config) as world:
        run, dataset = world.first(lambda: begun(to, config.run_name, open_data(data)))
        identity = identity_of(config, dataset)
        config = identity.config

        def learner(fresh: bool) -> PretrainLearner:
            features = feature_network(config) if config.variant == "perceptual" else None
            torch.manual_seed(config.seed)
            objective = build_objective(config, features)
            if config.model.init_from is not None and fresh:
                what = f"model.init_from={config.model.init_from}"
                weights = initial_weights(config.model.init_from)
                if load_generator(objective.generator, weights, what) and world.rank == 0:
                    note(f"{what}: holds the encoder only; the decoder starts fresh")
            val = eval_loader(config, dataset, "val", world)
            judge = build_judge(config, dataset, val.split, world)
            return PretrainLearner(config, objective, world, val, judge)

        return carry_out(identity, dataset, to, run, resume, world, learner)
