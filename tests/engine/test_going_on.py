"""Going on with a run: for longer, after an outage of its store, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.engine import loop
from percmae.engine.checkpoint import read_state, write_state
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import probe
from percmae.engine.loop import Loop
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import run_state
from percmae.errors import CheckpointError, UserError
from percmae.runs.checkpoints import Checkpoints
from percmae.runs.downstream import downstream_config
from percmae.runs.history import read_history
from percmae.runs.record import Run
from percmae.storage import StorePath

Make = Callable[..., Config]
SMALL = ("data.batch_size=16", "data.workers=0")
QUICK = ("tracking.knn_samples=0", "tracking.rankme_samples=0", "tracking.images=0")


def test_a_finished_run_is_trained_for_longer(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def to_epoch(epochs: int, resume: str = "auto") -> Run:
        config = tiny(f"optim.epochs={epochs}", *QUICK)
        return pretrain(config, tiny_dataset.uri, str(tmp_path), resume).run

    first = to_epoch(1)
    judged = downstream_config(first, "probe", overrides=["optim.max_steps=1", *SMALL])
    probe(judged, first, tiny_dataset.uri, str(tmp_path))
    evaluate(first.uri, tiny_dataset.uri)
    key, rows = first.key, read_history(first.path)
    with pytest.raises(UserError, match=r"fewer steps \(optim\.epochs: 1 → 2\); add --resume"):
        to_epoch(2, "never")
    capsys.readouterr()
    second = to_epoch(2)
    assert "trained for longer (optim.epochs=1 → 2), from step" in capsys.readouterr().err
    record = Run.open(second.uri).record
    assert (record.status, record.step) == ("complete", 2 * first.record.step)
    assert record.key != key
    (extension,) = record.extended
    assert (extension.step, extension.epochs) == (first.record.step, 1)
    assert read_history(second.path)[: len(rows)] == rows
    assert run_state(second.uri)["key"] == record.key
    assert "epochs: 2" in (second.path / "config.yaml").read_text()
    # Reused from now on; not to be had with fewer epochs any more.
    assert pretrain(second.config, tiny_dataset.uri, str(tmp_path)).reused
    with pytest.raises(UserError, match=r"another config \(optim\.epochs: 2 → 1\)"):
        to_epoch(1)
    # What was made of it before is not of these weights.
    with pytest.raises(UserError, match=r"another parent run .*trained anew, or for longer, since"):
        probe(judged, second, tiny_dataset.uri, str(tmp_path))
    assert not evaluate(second.uri, tiny_dataset.uri).reused


def test_a_checkpoint_of_another_run_is_refused(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = pretrain(tiny("optim.max_steps=1", *QUICK), tiny_dataset.uri, str(tmp_path)).run
    run.save(status="running")
    folder = Checkpoints(run.path / "checkpoints", run.config.checkpoint)
    latest = folder.latest()
    assert latest is not None
    state = read_state(folder.folder / latest.name)
    config = {**state["config"], "seed": 5}
    for other, said in (
        ({"data_digest": "sha256:other"}, "is of another dataset: sha256:other → sha256:"),
        ({"config": config}, r"is of another config \(seed: 5 → 0\)"),
    ):
        sha256 = write_state(folder.folder / latest.name, {**state, **other})
        folder.point_to(latest.model_copy(update={"sha256": sha256}))
        with pytest.raises(CheckpointError, match=said):
            pretrain(run.config, tiny_dataset.uri, str(tmp_path))


def test_a_run_stopped_between_its_last_checkpoint_and_its_end_is_finished(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = pretrain(tiny("optim.max_steps=2", *QUICK), tiny_dataset.uri, str(tmp_path)).run
    run.save(status="running", finished=None)
    again = pretrain(run.config, tiny_dataset.uri, str(tmp_path))
    assert (again.reused, again.run.complete, again.run.record.step) == (False, True, 2)


def test_training_goes_on_while_its_store_is_away(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny("checkpoint.every_steps=2", f"checkpoint.spool={tmp_path}/spool", *QUICK)
    whole = pretrain(config, tiny_dataset.uri, str(tmp_path / "whole"))
    original = loop.Loop._optimise

    with FaultyProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        away = proxy.lasting("503")

        def train(self: loop.Loop, *args: Any) -> None:
            if self.step == 5:
                away.__enter__()
            if self.step == self.plan.total - 1:
                away.__exit__(None, None, None)
            original(self, *args)

        monkeypatch.setattr(loop.Loop, "_optimise", train)
        there = pretrain(config, tiny_dataset.uri, s3.uri("runs"))
        monkeypatch.setattr(loop.Loop, "_optimise", original)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    run = StorePath(there.uri)
    clock = ("images_per_second", "loader_wait")
    found, expected = (
        [
            (row.step, row.split, {k: v for k, v in row.figures.items() if k not in clock})
            for row in read_history(folder)
        ]
        for folder in (run, whole.run.path)
    )
    assert found == expected
    left, right = (run_state(each)["networks"]["generator"] for each in (run.uri, whole.uri))  # type: ignore[index]
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert list((tmp_path / "spool").iterdir()) == []


def test_gpu_seconds_go_on_with_the_gpus_that_there_are_now() -> None:
    loop = Loop.__new__(Loop)
    loop.seconds, loop.gpu_seconds, loop._gpus = 100.0, 400.0, 2
    loop._passed(110.0)
    loop._passed(111.0)
    assert (loop.seconds, loop.gpu_seconds) == (111.0, 422.0)
