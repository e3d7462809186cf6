"""Batch normalisation whose statistics are those of the whole batch, whatever the processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that shares its sums over the processes of a job while it trains.

    Two processes then compute what one would with the doubled batch. (PyTorch's SyncBatchNorm does
    the same, on GPUs only.) Statistics are those of one micro-batch: under gradient accumulation
    each micro-batch is normalised by itself. State dicts are those of ``nn.BatchNorm2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised over N, H, W of all processes; in evaluation mode as usual."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        wide = x.float()
        sums = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        total = x.numel() // x.shape[1] * dist.get_world_size()
        mean, square = (all_reduce(sums) / total).unbind(0)
        variance = (square - mean.square()).clamp(min=0)
        self._remember(mean.detach(), variance.detach() * (total / max(total - 1, 1)))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
