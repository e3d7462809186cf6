"""The precision that a run computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from percmae.config import Config


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast where the config asks for it (auto: on a GPU), else nothing."""
    precision = config.trainer.precision
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()
