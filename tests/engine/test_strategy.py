"""trainer.strategy=ddp: DistributedDataParallel around the networks of a single process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.engine.pretrain import pretrain
from percmae.storage import StorePath

from .forked import free_port

Make = Callable[..., Config]


def losses(run: str) -> list[float]:
    text = (StorePath(run) / "metrics.jsonl").read_text()
    return [row["loss"] for row in map(json.loads, text.splitlines())]


def test_ddp_in_one_process_gives_the_losses_of_auto(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[nn.Module] = []

    class Counted(nn.parallel.DistributedDataParallel):
        def __init__(self, network: nn.Module, **options: object) -> None:
            super().__init__(network, **options)
            wrapped.append(network)

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Counted)
    # As torchrun starts a process that is alone.
    job = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**job, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    runs = {}
    for strategy in ("auto", "ddp"):
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        config = tiny(f"trainer.strategy={strategy}", "optim.epochs=1", "optim.warmup_epochs=0")
        runs[strategy] = losses(pretrain(config, tiny_dataset.uri, str(tmp_path / strategy)).uri)
        assert not dist.is_initialized()
        assert len(wrapped) == (strategy == "ddp")
    assert len(runs["auto"]) > 5
    assert runs["ddp"] == pytest.approx(runs["auto"], rel=1e-6)
