"""What a task is given: where to write, which device, which sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_check.settings import TINY
from percmae.bench.flops import matmul_rate
from percmae.config import Config, load_config


@dataclass(frozen=True)
class Check:
    """One task's surroundings.

    name: what of its part; rows: the file that takes its results; scratch: a folder all tasks
    share; tiny: small sizes.
    """

    name: str
    rows: Path
    scratch: Path
    tiny: bool

    @property
    def device(self) -> torch.device:
        """The GPU, if there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def write(self, part: str, **values: Any) -> None:
        """Keep one result; the table prints it, and says ``missed`` where that is given."""
        with self.rows.open("a") as file:
            file.write(json.dumps({"part": part, "name": self.name, **values}) + "\n")

    def config(self, variant: str, size: str, *overrides: str) -> Config:
        """The MAE paper's recipe at a size; the tiny sizes go before what is asked for."""
        small = TINY if self.tiny else []
        return load_config(variant, "mae", overrides=[*overrides, *small], size=size)

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOP/s of a large matrix product."""
        return matmul_rate(self.device, dtype, 256 if self.tiny else None)

    def batch(self, wanted: int) -> int:
        """Images a step."""
        return 4 if self.tiny else wanted


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
