"""Runs that an earlier percmae has left: they open, and are written back byte for byte.

``before`` has a pretraining, its probe, the probe's control and a fine-tuning stopped at step 10,
as they lay below s3://percmae/runs/seed-0 before the files of a run became models; checkpoints,
pictures and event files are left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from percmae.config import digest, to_yaml
from percmae.errors import UserError
from percmae.report import report
from percmae.runs.evaluation import (
    ClassifierEvaluation,
    ReconstructionEvaluation,
    read_evaluation,
    write_evaluation,
)
from percmae.runs.going_on import may_go_on
from percmae.runs.history import History, read_history
from percmae.runs.record import Identity, Run
from percmae.storage import StorePath

BEFORE = Path(__file__).parent / "before"
NAMES = ("old_ssim", "old_ssim_probe", "old_ssim_probe_untrained", "old_ssim_finetune")
KEYS = {
    "old_ssim": "sha256:90b6e2ffe2d04e82c788093ea06744ce56f2ba1e04beecac9348c10e4849df64",
    "old_ssim_probe": "sha256:83947461c121047b6efcc270acc171eda7ef4d909db7d74ed2282be30bc911cb",
    "old_ssim_finetune": "sha256:fc459bb4650790cc7c592b9ae4224fe62cd9388b7792fd2907c37aeef7ed072a",
}


def identity(run: Run) -> Identity:
    """As the command that trained it would make it today."""
    record = run.record
    parent = None
    if record.parent is not None:
        parent = Run.open(str(BEFORE / record.parent.rpartition("/")[2])).key
    data = record.data
    return Identity(
        record.name, run.config, data.uri, data.digest, record.parent, parent, record.built_on
    )


@pytest.mark.parametrize("name", NAMES)
def test_key_and_digest_are_what_they_were(name: str) -> None:
    run = Run.open(str(BEFORE / name))
    assert run.record.name == name
    assert digest(run.config) == run.record.config_digest
    assert identity(run).key == run.key == KEYS.get(name, run.key)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_written_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    run = Run.open(str(BEFORE / name))
    folder = StorePath(tmp_path)
    Run(folder, run.record, run.config).save()
    (folder / "config.yaml").write_text(to_yaml(run.config))
    evaluation = read_evaluation(run.path, run.record)
    if evaluation is not None:
        write_evaluation(folder, evaluation)
    history = History(folder, 0)
    for row in read_history(run.path):
        figures = {key: value for key, value in row.figures.items() if value is not None}
        history.add(row.step, row.epoch, row.split, figures)
    history.path.write_bytes(history.content())
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before = {path.name: path.read_bytes() for path in (BEFORE / name).iterdir()}
    # The configuration may have got further settings since, at their defaults.
    old, new = (set(files.pop("config.yaml").splitlines()) for files in (before, written))
    assert old <= new
    assert written == before


def test_a_finished_run_is_reused_and_a_stopped_one_gone_on_with() -> None:
    finished, stopped = (Run.open(str(BEFORE / name)) for name in ("old_ssim", "old_ssim_finetune"))
    assert (finished.complete, stopped.complete, stopped.record.step) == (True, False, 10)
    for run in (finished, stopped):
        assert Run.find(str(BEFORE), identity(run).name) == run
        may_go_on(run, identity(run), "auto")
    with pytest.raises(UserError, match="stopped at step 10; add --resume auto"):
        may_go_on(stopped, identity(stopped), "never")
    other = identity(finished)._replace(data_digest="sha256:other")
    with pytest.raises(UserError, match="exists with another dataset"):
        may_go_on(finished, other, "auto")
    # The number of threads differs as well, but is not why.
    config = replace(finished.config, trainer=replace(finished.config.trainer, threads=7))
    assert not may_go_on(finished, identity(finished)._replace(config=config), "auto")
    for settings, said in (
        ({"epochs": 1}, r"another config \(optim\.epochs: \d+ → 1\)"),
        ({"epochs": 99, "max_steps": 3}, r"another config \(.*optim\.max_steps: None → 3\)"),
        ({"epochs": 99, "lr": 0.5}, r"another config \(optim\.lr: .* → 0\.5, optim\.epochs"),
    ):
        changed = replace(config, optim=replace(config.optim, **settings))
        with pytest.raises(UserError, match=said):
            may_go_on(finished, identity(finished)._replace(config=changed), "auto")
    longer = replace(config, optim=replace(config.optim, epochs=99))
    assert may_go_on(finished, identity(finished)._replace(config=longer), "auto")
    with pytest.raises(UserError, match=r"begun for fewer steps .*→ 99\); add --resume auto"):
        may_go_on(finished, identity(finished)._replace(config=longer), "never")


def test_figures_are_read() -> None:
    pretrain, probe = (Run.open(str(BEFORE / name)) for name in NAMES[:2])
    found = read_evaluation(pretrain.path, pretrain.record)
    assert isinstance(found, ReconstructionEvaluation)
    assert found.reconstruction.psnr == pytest.approx(11.22, abs=0.01)
    judged = read_evaluation(probe.path, probe.record)
    assert isinstance(judged, ClassifierEvaluation)
    assert (judged.top1, judged.classes[1].top1, judged.samples.test) == (0.55, 1.0, 40)
    rows = read_history(pretrain.path)
    assert rows[-1].figures["loss"] == pretrain.record.metrics["val/loss"]


def test_they_stand_in_a_report(tmp_path: Path) -> None:
    document = report([str(BEFORE / name) for name in NAMES], str(tmp_path / "out"))
    tops = {row["row"]: row["top1"]["mean"] for row in document["table"]}
    files = {
        kind: json.loads((BEFORE / f"old_ssim_{kind}" / "evaluation.json").read_text())["top1"]
        for kind in ("probe", "probe_untrained")
    }
    assert tops == {**files, "random_guess": 0.25}
    assert "old_ssim_finetune (seed 0) is not finished: step 10 of 26." in document["missing"]
    assert {run["name"]: run["key"] for run in document["runs"]}.items() >= KEYS.items()
    assert "--run s3://percmae/runs/seed-0/old_ssim" in (tmp_path / "out/report.html").read_text()


def test_going_on_takes_back_what_was_logged_beyond_the_checkpoint(tmp_path: Path) -> None:
    shutil.copy(BEFORE / "old_ssim" / "metrics.jsonl", tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    history = History(StorePath(tmp_path), 8)
    history.add(9, 0.75001, "train", {"loss": float("nan"), "lr": 1e-5})
    history.path.write_bytes(history.content())
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    before = [line for line in lines if json.loads(line)["step"] <= 8]
    assert 0 < len(before) < len(lines)
    new = '{"step": 9, "epoch": 0.75, "split": "train", "loss": null, "lr": 1e-05}'
    assert kept == [*before, new]
