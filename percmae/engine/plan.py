"""How many steps a run has, and after how many of them something is due."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from percmae.config import Config
from percmae.errors import UserError


@dataclass
class Plan:
    """Counts that follow from the config, the training set and the number of processes.

    accumulate: micro-batches a step; batch: images a step over all processes; epoch: steps in one;
    total: steps in the run; log, val, save, picture: steps between those events.
    """

    accumulate: int
    batch: int
    epoch: int
    total: int
    log: int
    val: int
    save: int
    picture: int
    milestone: int | None

    @classmethod
    def make(cls, config: Config, samples: int, processes: int) -> Plan:
        """Raises UserError when the training set cannot fill one step."""
        optim = config.optim
        micro = config.data.batch_size * processes
        if optim.total_batch is not None and optim.total_batch % micro:
            raise UserError(
                f"optim.total_batch={optim.total_batch} is not a multiple of data.batch_size="
                f"{config.data.batch_size} on {processes} process(es)"
            )
        accumulate = optim.total_batch // micro if optim.total_batch else optim.accumulate
        batch = micro * accumulate
        epoch = samples // batch
        if not epoch:
            raise UserError(
                f"one step takes {batch} images, the training set has {samples}; lower "
                "data.batch_size, or set optim.total_batch=null to lower the effective batch"
            )
        total = int(min(optim.epochs * epoch, optim.max_steps or math.inf))

        def steps(epochs: float) -> int:
            # What is never due before the end is due then: no number of epochs is too large.
            return max(1, round(min(epochs * epoch, total)))

        milestone = config.checkpoint.milestone_epochs
        return cls(
            accumulate, batch, epoch, total, config.trainer.log_interval,
            steps(config.trainer.val_interval), config.checkpoint.every_steps or epoch,
            steps(config.tracking.images_every), milestone * epoch if milestone else None,
        )  # fmt: skip


def with_smaller_steps(config: Config, samples: int, processes: int) -> Config:
    """The config with steps no larger than the share of the labels that it asks for.

    samples: images of that share. A step has fewer micro-batches then or, where not even one would
    be full, a smaller one. What no step can be made of is left for :meth:`Plan.make` to refuse.
    """
    optim, batch = config.optim, config.data.batch_size
    micro = batch * processes
    accumulate = optim.total_batch // micro if optim.total_batch else optim.accumulate
    if config.data.label_fraction == 1 or samples >= micro * accumulate:
        return config
    fewer = samples // micro
    if not fewer:
        # Pairs, which is what mixing takes, and batch normalisation at the least.
        batch = samples // processes // 2 * 2
        if not batch:
            return config
    optim = replace(optim, total_batch=None, accumulate=max(fewer, 1))
    return replace(config, data=replace(config.data, batch_size=batch), optim=optim)
