"""A whole pretraining loop on this process's device, over batches that a check provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from percmae.bench.contenders import random_features
from percmae.config import Config
from percmae.data.batch import Batch
from percmae.engine.distributed import World
from percmae.engine.loop import Loop
from percmae.engine.plan import Plan
from percmae.engine.pretrain import PretrainLearner
from percmae.losses.build import build_objective
from percmae.runs.record import Identity, Run

# One micro-batch a step, and nothing but steps: no logging, validation or checkpoint on the way.
ONLY_STEPS = [
    "optim.total_batch=null",
    "trainer.log_interval=1000000000",
    "trainer.val_interval=1000000",
    "checkpoint.every_steps=1000000000",
    "tracking.knn_samples=0",
    "tracking.rankme_samples=0",
]


class Batches:
    """In the loader's place: one batch that is on the device.

    before: what is done before the step of that number (counted from 0); the last number ends
    training.
    """

    def __init__(
        self, config: Config, device: torch.device, before: dict[int, Callable[[], Any]]
    ) -> None:
        n, size = config.data.batch_size, config.data.image_size
        tensors = torch.randn(n, 3, size, size), torch.zeros(n, dtype=torch.int64), torch.arange(n)
        self._batch = Batch(*(t.to(device) for t in tensors))
        self._before = before

    def batches(
        self, epoch: int, start: int, epochs: int | None
    ) -> Iterator[tuple[int, int, Batch]]:
        for number in range(max(self._before) + 1):
            self._before.get(number, lambda: None)()
            if number < max(self._before):
                yield epoch, start + number, self._batch


def loop_over(
    config: Config, loader: Any, samples: int, device: torch.device, folder: Path
) -> Loop:
    """The loop of a new run in ``folder``, about to begin epoch 1 (0 is a refreshing one)."""
    torch.manual_seed(0)
    world = World(0, 1, device)
    learner = PretrainLearner(
        config, build_objective(config, random_features(config)), world, val=None
    )  # type: ignore
    run = Run.create(str(folder), Identity("checked", config, "memory", "none"), {})
    plan = Plan.make(config, samples, 1)
    loop = Loop(learner, config, run, loader, world, plan)
    loop.step = plan.epoch
    return loop


def run_out(loop: Loop) -> None:
    """Train until the loader in the real one's place, which has no end, has no more."""
    with suppress(StopIteration):
        loop.run()
