"""The whole pipeline for real, in small: every step, through an S3 server, twice."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_pipeline import TINY, write_images
from unlabelled import pattern

from percmae.errors import ConfigError, UserError
from percmae.stages.placement import Placement
from percmae.storage import StorePath
from pipelines.local.options import RunOptions
from pipelines.local.run import PipelineOutcome, fork_server_for, run, steps_table
from pipelines.local.tasks import FinishedStep, StepError
from pipelines.local.warm import ForkServer

if TYPE_CHECKING:
    from s3_server import S3


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with fork_server_for(Placement()) as server:
        yield server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), "dark", "grey", "light")


def artifacts(
    outcome: PipelineOutcome, name: str, seed: int | None = None
) -> dict[str, dict[str, Any]]:
    return next(s.artifacts for s in outcome.steps if (s.name, s.seed) == (name, seed))


@pytest.mark.slow
def test_the_whole_pipeline_twice(
    images: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: ForkServer
) -> None:
    monkeypatch.setenv("PERCMAE_HOME", str(tmp_path / "home"))
    store = s3.uri("pipeline")

    def once(seeds: tuple[int, ...], *more: str) -> PipelineOutcome:
        to, overrides = tmp_path / "runs", [*TINY, *more]
        options = RunOptions(
            "t", source=str(images), seeds=seeds, overrides=overrides, label_fractions=(0.5,), to=to
        )
        return run("mae", dataclasses.replace(options, store=store), forks)

    outcome = once((3, 5))

    dataset = artifacts(outcome, "ingest")["dataset"]
    assert dataset["uri"].startswith(f"{store}/datasets/")
    manifest = StorePath(dataset["uri"]).read_json()
    assert dataset["digest"] == manifest["digest"]
    assert dataset["classes"] == 3
    assert dataset["test"] == manifest["splits"]["test"]["samples"]
    for seed in (3, 5):
        check_runs(outcome, store, seed, dataset)
    page = outcome.html.read_text(encoding="utf-8")
    assert outcome.html == (tmp_path / "runs" / "t_mae" / "report.html").resolve()
    assert "t_mae" in page
    assert StorePath(f"{store}/reports/t_mae/report.html").read_text() == page
    report = json.loads(outcome.json.read_text(encoding="utf-8"))
    assert report == outcome.report
    assert report["seeds"] == [3, 5]
    rows = [row["row"] for row in report["table"]]
    assert rows == [
        "random_guess",
        *("probe_pixels", "probe_untrained", "knn_untrained", "knn", "probe"),
        *("finetune_labels-50pct_untrained", "finetune_labels-50pct"),
    ]
    assert not report["missing"]
    assert artifacts(outcome, "report")["metrics"]["random_guess_top1"] == pytest.approx(1 / 3)
    assert not any(step.reused for step in outcome.steps)

    assert len(outcome.steps) == 3 + 2 * 12

    again = once((5,))

    assert {step.name for step in again.steps if not step.reused} == {"check", "report"}
    for step in ("pretrain", "evaluate probe"):
        before, after = artifacts(outcome, step, 5), artifacts(again, step, 5)
        assert before.keys() == after.keys()
        assert before.get("metrics") == after.get("metrics")

    with pytest.raises(StepError, match=r"exists with another config \(optim.epochs: 1 → [23]\)"):
        once((5,), "optim.epochs=2")


def check_runs(outcome: PipelineOutcome, store: str, seed: int, dataset: dict[str, Any]) -> None:
    names = {
        "pretrain": "t_mae",
        "probe": "t_mae_probe",
        "probe_untrained": "t_mae_probe_untrained",
        "probe_pixels": "t_mae_probe_pixels",
        "finetune_labels-50pct": "t_mae_finetune_labels-50pct",
        "finetune_labels-50pct_untrained": "t_mae_finetune_labels-50pct_untrained",
    }
    for step, name in names.items():
        made = artifacts(outcome, step, seed)
        model = made["model"]
        record = (StorePath(model["uri"]) / "run.json").read_json()
        assert model["uri"] == f"{store}/runs/seed-{seed}/{name}"
        assert (record["status"], record["seed"]) == ("complete", seed)
        assert model["seed"] == seed
        assert model["baseline"] is step.endswith(("untrained", "pixels"))
        assert model["data_digest"] == dataset["digest"]
        assert model["config_digest"] == record["config_digest"]
        assert made["metrics"]
    for step in list(names)[1:]:
        made = artifacts(outcome, f"evaluate {step}", seed)
        assert 0 <= made["metrics"]["top1"] <= 1
        rows = made["confusion"]["confusionMatrix"]["rows"]
        assert sum(sum(row["row"]) for row in rows) == dataset["test"]
    figures = artifacts(outcome, "evaluate pretrain", seed)
    assert figures["metrics"]["psnr"] > 0
    assert figures.keys() == {"metrics", "page"}


@pytest.mark.slow
def test_the_command_with_its_own_store(images: Path, tmp_path: Path) -> None:
    words = ["--seeds", "0", "--source", str(images), *TINY, "--no-fine-tune", "--to", "out"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment["PERCMAE_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-m", "percmae", "run", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str((tmp_path / "out" / "mae" / "report.html").resolve())
    assert any(line.startswith("Linear probe, untrained encoder") for line in lines)
    assert "finetune" not in done.stdout
    assert (tmp_path / "out" / "mae" / "report.json").exists()
    assert "Traceback" not in done.stderr
    assert "KFP" not in done.stdout + done.stderr
    assert not list((tmp_path / "home" / "store").glob("state.json"))  # the server is gone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "one or more different"),
        ({"seeds": (1, 1)}, "one or more different"),
        ({"variant": "mea"}, "did you mean 'mae'"),
        ({"overrides": ["optim.epoch=1"]}, "did you mean 'optim.epochs'"),
        ({"overrides": ["probe.optim.epoch=1"]}, "did you mean 'optim.epochs'"),
        ({"overrides": ["seed=1"]}, "--seeds"),
        ({"source": "nothing"}, "unknown sample source"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERCMAE_HOME", raising=False)
    with pytest.raises(UserError, match=message):
        run(arguments.pop("variant", "mae"), RunOptions(**arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_without_labels(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: ForkServer
) -> None:
    """A flat folder: what needs labels is left out, the run ends well and is reported."""
    monkeypatch.setenv("PERCMAE_HOME", str(tmp_path / "home"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(80):
        pattern(number % 5, number).save(photos / f"{number}.jpg")
    options = RunOptions("t", images=str(photos), seeds=(0,), overrides=TINY, to=tmp_path / "runs")
    options = dataclasses.replace(options, label_fractions=(1.0,), store=s3.uri("unlabelled"))
    outcome = run("mae", options, forks)
    skipped = {step.name for step in outcome.steps if step.skipped}
    done = {step.name for step in outcome.steps} - skipped
    assert done == {"check", "ingest", "pretrain", "evaluate pretrain", "report"}
    assert {"probe", "evaluate probe", "finetune", "evaluate finetune"} <= skipped
    assert outcome.report["labelled"] is False
    assert outcome.report["features"]["rankme"]["n"] == 1
    assert "features are nearest to its own" in " ".join(outcome.html.read_text().split())


def test_steps_table() -> None:
    reused = {"model": {"reused": True}}
    steps = [
        FinishedStep("ingest", None, 3.2, {"dataset": {"reused": False}}),
        FinishedStep("pretrain", 1, 60.4, {}),
        FinishedStep("pretrain", 0, 4.9, reused),
        FinishedStep("probe", 1, 0.4, {"model": {"skipped": "no labels"}}),
    ]
    assert steps_table(steps).splitlines() == [
        "Seconds       seed 0      seed 1",
        "ingest             3",
        "pretrain         (5)          60",
        "probe                          –",
        "(n): unchanged since an earlier run, reused",
        "–: skipped: no labels",
    ]


def test_config_errors_are_of_their_kind() -> None:
    with pytest.raises(ConfigError):
        run("mae", RunOptions(recipe="dmeo"))
