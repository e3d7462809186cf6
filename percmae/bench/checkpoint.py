"""``percmae bench checkpoint``: what a checkpoint costs the training, side by side in one run.

The state is a whole masked autoencoder's with its optimiser's moments. Measured are our way to a
store and to a folder, the asynchronous save of torch.distributed.checkpoint to a folder (it has no
way to a store), and the way percmae had before: archive, hash and upload in the training's thread.
Each measurement is a process of its own with one thread that stands for the training: it multiplies
matrices while others work, and what it gets done less than alone is counted too (``lost``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from percmae import __version__
from percmae.bench.child import answer_of, processor
from percmae.bench.contenders import Contender, config_for, training_objective
from percmae.bench.memory import available, peak_since, resident
from percmae.config.schema import Checkpoint as Rules
from percmae.engine.checkpoint import State, archive
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.spool import Spool
from percmae.errors import UserError
from percmae.memory import keep_freed_memory
from percmae.models import build_model
from percmae.progress import note, warn
from percmae.storage import StorePath

FORMAT = "percmae-bench-checkpoint/1"
INTERVAL = 60.0  # seconds between checkpoints, of which a share is told
WAYS = {
    "to a store": (2.4, 3.1),
    "to a folder": (2.4, 2.1),
    "torch.distributed.checkpoint": (2.4, 1.1),
    "in the thread, to a store": (3.4, 2.1),
}
"""What is measured, and how often the state has to fit into memory and on disk for it."""
_QUIET = 1.0  # seconds in which the training works alone, first


def bench(
    store: str, sizes: Sequence[str], rounds: int = 3, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure and return the document that ``--json`` prints.

    store: URI of a folder to write to. sizes: of the encoder. rounds: checkpoints of each way, one
    after the other. overrides: ``key=value`` settings. A way for which there is not memory enough
    is left out, which is said. Raises UserError for rounds below 1, ConfigError for unknown names,
    PercmaeError when a measurement fails.
    """
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: give a whole number from 1")
    for size in sizes:
        config_for(Contender("mae", "mae"), size, "fp32", list(overrides))
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "processor": processor(),
        "rounds": rounds,
        "interval": INTERVAL,
        "sizes": [_size(store, size, rounds, list(overrides)) for size in sizes],
    }


def _size(store: str, size: str, rounds: int, overrides: list[str]) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="percmae-bench-") as scratch:
        for way, (in_memory, on_disk) in WAYS.items():
            wanted = _expected(size, overrides)
            lacking = {
                "memory": in_memory * wanted > available(),
                "room on disk": on_disk * wanted > shutil.disk_usage(scratch).free,
            }
            if any(lacking.values()):
                what = " and ".join(name for name, lacks in lacking.items() if lacks)
                warn(f"{size}: {way}: left out, there is too little {what} for it")
                continue
            note(f"{size}: {way}")
            request = {
                "way": way,
                "size": size,
                "rounds": rounds,
                "store": f"{store}/{size}",
                "folder": scratch,
                "overrides": overrides,
            }
            what = f"bench checkpoint: {way} at size {size}"
            rows.append({"way": way, **answer_of("percmae.bench.checkpoint", request, 1, what)})
            _remove(StorePath(scratch), StorePath(store))
    return {"size": size, "rows": rows}


def _remove(*folders: StorePath) -> None:
    for folder in folders:
        for entry in list(folder.iter()):
            entry.path.delete()


def _expected(size: str, overrides: list[str]) -> int:
    """Bytes of a state: weights and two moments of each, in fp32."""
    with torch.device("meta"):
        network = build_model(config_for(Contender("mae", "mae"), size, "fp32", overrides))
    return 3 * 4 * sum(parameter.numel() for parameter in network.parameters())


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """One way, in this process: medians over its rounds, of memory the most."""
    keep_freed_memory()  # as training does
    state = training_state(request["size"], request["overrides"])
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))
    way, folder = request["way"], Path(request["folder"])
    training = _Training()
    before = resident()
    measured = []
    if way == "torch.distributed.checkpoint":
        for _ in range(request["rounds"]):
            measured.append(_by_torch(state, folder / "dcp", training))
    elif way.startswith("in the thread"):
        for _ in range(request["rounds"]):
            measured.append(_in_the_thread(state, StorePath(request["store"]) / "one.pt"))
    else:
        to = StorePath(request["store"] if way == "to a store" else folder / "run")
        rules = Rules(spool=str(folder), keep_last=1, keep_best=0)
        with Spool(to, 0.0, rules) as spool:
            for number in range(request["rounds"]):
                measured.append(_by_spool(state, number, spool, training))
    medians = {
        key: None if measured[0][key] is None else statistics.median(m[key] for m in measured)
        for key in measured[0]
    }
    stall = medians["stall"]
    assert stall is not None
    return {
        "bytes": size,
        **medians,
        "worst_stall": max(m["stall"] for m in measured),
        "share_of_interval": stall / INTERVAL,
        "memory_over_state": (peak_since(before)) / size,
    }


def training_state(size: str, overrides: list[str]) -> State:
    """Weights and moments of a masked autoencoder of that size, on the CPU."""
    config = config_for(Contender("mae", "mae"), size, "fp32", overrides)
    objective = training_objective(config, torch.device("cpu"))
    network = objective.networks["generator"]
    optimizer = build_optimizer(config.optim, parameter_groups(network, config.optim))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "networks": {"generator": network.state_dict()},
        "optimizers": {"generator": optimizer.state_dict()},
    }


class _Training:
    """What the training's thread does meanwhile, and how much of it when it is alone."""

    def __init__(self) -> None:
        self._matrix = torch.randn(384, 384)
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < _QUIET:
            self._step()
            steps += 1
        self._seconds = (time.perf_counter() - began) / steps

    def until(self, done: Callable[[], bool]) -> tuple[float, float]:
        """Seconds until something is done, and those of them that the training lost."""
        began, steps = time.perf_counter(), 0
        while not done():
            self._step()
            steps += 1
        seconds = time.perf_counter() - began
        return seconds, max(0.0, seconds - steps * self._seconds)

    def _step(self) -> None:
        torch.mm(self._matrix, self._matrix)


def _by_spool(state: State, number: int, spool: Spool, training: _Training) -> dict[str, Any]:
    began = _Clock()
    spool.checkpoint(state, "{}\n", number, 0)
    stall, cpu = began.since()
    disk, lost = training.until(lambda: spool.on_disk)
    sent, lost_too = training.until(lambda: spool.written(0.0))
    disk += stall
    store = disk + sent if spool.run.is_s3 else None
    return {"stall": stall, "cpu": cpu, "lost": lost + lost_too, "disk": disk, "store": store}


def _by_torch(state: State, folder: Path, training: _Training) -> dict[str, Any]:
    from torch.distributed.checkpoint import async_save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process
        began = _Clock()
        future = async_save(state, checkpoint_id=str(folder))
        stall, cpu = began.since()
        disk, lost = training.until(future.done)  # type: ignore[union-attr]
    return {"stall": stall, "cpu": cpu, "lost": lost, "disk": stall + disk, "store": None}


def _in_the_thread(state: State, path: StorePath) -> dict[str, Any]:
    began = _Clock()
    data = archive(state)
    hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    seconds, cpu = began.since()
    return {"stall": seconds, "cpu": cpu, "lost": 0.0, "disk": None, "store": seconds}


class _Clock:
    """Seconds since it was made: by the clock, and of processor time of this thread, which is what
    a machine that is shared still tells truly."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.thread_time()

    def since(self) -> tuple[float, float]:
        return time.perf_counter() - self._began[0], time.thread_time() - self._began[1]


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state
    return [t for p in parts for t in _tensors(p)] if isinstance(state, dict | list) else []


def table(document: dict[str, Any]) -> str:
    """The document as text for a terminal."""
    lines = [
        f"a checkpoint on {document['processor']}, torch {document['torch']}; median of "
        f"{document['rounds']}; share: of {document['interval']:g} s between two"
    ]
    for size in document["sizes"]:
        lines += [
            "",
            f"{size['size']}",
            f"{'':30}{'GiB':>6}{'stall s':>9}{'worst':>8}{'CPU s':>8}{'share':>8}{'lost s':>8}"
            f"{'disk s':>8}{'store s':>9}{'memory':>9}",
        ]
        for row in size["rows"]:
            disk, store = (
                "" if row[name] is None else f"{row[name]:.2f}" for name in ("disk", "store")
            )
            lines.append(
                f"{row['way']:30}{row['bytes'] / 2**30:6.2f}{row['stall']:9.3f}"
                f"{row['worst_stall']:8.3f}{row['cpu']:8.3f}{row['share_of_interval']:8.2%}{row['lost']:8.2f}{disk:>8}{store:>9}"
                f"{row['memory_over_state']:8.2f}x"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
