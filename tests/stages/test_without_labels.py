"""A pipeline on images without labels: what needs them is left out, the rest is done and told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fixtures_data import TINY
from unlabelled import write_dataset

from percmae.data.shards import Dataset
from percmae.stages import steps
from percmae.stages.placement import Placement

SETTINGS = [s for s in TINY if not s.startswith("data.augment")]


class Artifact(SimpleNamespace):
    """A KFP artifact as a step sees it."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(path=str(folder / name), metadata={}, logged={})

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None:
        raise AssertionError("there is none")


class Pipeline(NamedTuple):
    store: str
    dataset: Artifact
    model: Artifact
    folder: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pipeline(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The first steps, done for real."""
    folder = tmp_path_factory.mktemp("pipeline")
    store = str(folder / "store")
    dataset, model, metrics = (Artifact(folder, name) for name in ("dataset", "model", "metrics"))
    dataset.metadata |= {"uri": data.uri, "labelled": data.labelled_images}
    where: Any = (model, metrics, Placement())
    steps.pretrain(dataset, store, 3, "mae", "demo", "", "t", SETTINGS, *where)
    assert "val/rankme" in metrics.logged
    return Pipeline(store, dataset, model, folder)


@pytest.mark.parametrize("placement", [Placement(), Placement("pytorchjob")])
@pytest.mark.parametrize("kind", ["probe", "finetune"])
def test_a_step_that_needs_labels_ends_well_without_work(
    kind: str,
    placement: Placement,
    pipeline: Pipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, metrics, confusion = (Artifact(tmp_path, name) for name in ("model", "m", "c"))
    step = steps.probe if kind == "probe" else steps.finetune
    step(pipeline.model, pipeline.dataset, SETTINGS, model, metrics, placement)
    assert model.metadata == {"kind": kind, "seed": 3, "skipped": "no labels"}
    assert json.loads(Path(model.path).read_text()) == model.metadata
    steps.evaluate(model, pipeline.dataset, metrics, confusion, placement)
    assert confusion.metadata == {"skipped": "no labels"}
    assert metrics.logged == {}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("skipped: no labels") for line in lines)


def test_the_rest_is_judged_and_reported(pipeline: Pipeline, tmp_path: Path) -> None:
    metrics, page = Artifact(tmp_path, "metrics"), Artifact(tmp_path, "page")
    steps.reconstruct(pipeline.model, pipeline.dataset, metrics, page, Placement())
    assert {"psnr", "ssim", "distance", "rankme"} == set(metrics.logged)
    assert "Nearest neighbours" in Path(page.path).read_text()
    skipped = Artifact(tmp_path, "probe")
    steps.probe(pipeline.model, pipeline.dataset, [], skipped, metrics, Placement())
    final = Artifact(tmp_path, "report")
    steps.report([pipeline.model], [skipped] * 3, True, [1.0], pipeline.store, final, metrics)
    text = Path(final.path).read_text()
    assert "There are no labels to tell by." in text
    assert "features are nearest to its own" in " ".join(text.split())
    stored = Path(pipeline.store) / "reports" / "t_mae" / "report.json"
    assert json.loads(stored.read_text())["labelled"] is False


def test_an_ingest_of_before_does_not_say_so(pipeline: Pipeline, tmp_path: Path) -> None:
    """Then the training finds out, and fails as it does from the command line."""
    dataset, model = Artifact(tmp_path, "dataset"), Artifact(tmp_path, "model")
    dataset.metadata["uri"] = pipeline.dataset.metadata["uri"]
    with pytest.raises(SystemExit) as ended:
        steps.probe(pipeline.model, dataset, SETTINGS, model, model, Placement())
    assert ended.value.code == 2
