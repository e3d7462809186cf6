"""Images without labels, or with a few: what is trained and told, and what is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_data import TINY
from PIL import Image
from unlabelled import write_dataset

from percmae.cli.verbs import main
from percmae.config import Config
from percmae.data.shards import UNLABELLED, Dataset
from percmae.engine.distributed import World
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import probe
from percmae.engine.loaders import eval_loader, train_images
from percmae.engine.pretrain import pretrain
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import ClassifierEvaluation, ReconstructionEvaluation
from percmae.runs.record import Run, RunResult

Make = Callable[..., Config]
SETTINGS = [s for s in TINY if not s.startswith(("data.augment", "trainer.val"))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 training and 12 test images, none of them labelled."""
    return write_dataset(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Of two classes, with every third training and test image unlabelled."""
    labels = [UNLABELLED if n % 3 == 2 else n % 2 for n in range(90)]
    return write_dataset(tmp_path_factory.mktemp("some"), labels, labels[:12], ["n01", "n02"])


@pytest.fixture(scope="module")
def run(plain: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretraining run on the unlabelled images, by the command line."""
    to = tmp_path_factory.mktemp("runs")
    given = ["--data", plain.uri, "--to", str(to), "--recipe", "demo", "--tag", "t", *SETTINGS]
    assert main(["pretrain", *given]) == 0
    return str(to / "t_mae")


def test_an_unlabelled_image_has_no_label_file(plain: Dataset, some: Dataset) -> None:
    import tarfile

    for dataset, labelled in ((plain, 0), (some, 54)):
        with tarfile.open(Path(dataset.uri).parent / "train" / "train-000000.tar") as tar:
            names = tar.getnames()
        assert sum(name.endswith(".cls") for name in names) == labelled
        assert sum(name.endswith(".jpg") for name in names) == len(dataset.split("train"))
        assert dataset.labelled_images == labelled


def test_a_run_is_judged_by_its_rank(run: str) -> None:
    metrics = Run.open(run).record.metrics
    assert "val/knn_top1" not in metrics
    assert metrics["val/loss"] is not None
    lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    ranks = [line["rankme"] for line in lines if line["split"] == "val"]
    # Of six held-out images, as many as there can be dimensions.
    assert len(ranks) == 2
    assert all(1 <= rank <= 6 for rank in ranks)
    assert metrics["val/rankme"] == ranks[-1]


def test_what_its_evaluation_tells(run: str, plain: Dataset) -> None:
    found = evaluate(run, plain.uri).evaluation
    assert isinstance(found, ReconstructionEvaluation)
    assert not found.labelled
    assert found.reconstruction.psnr is not None
    assert (found.knn, found.embedding) == (None, None)
    assert found.rank is not None
    assert (found.rank.images, found.rank.dimensions) == (12, 24)
    assert found.rank.value is not None
    assert 1 <= found.rank.value <= 12
    assert found.rank.value != found.rank.untrained
    assert evaluate(run, plain.uri).reused
    # Ten rows of a query and five neighbours, 32 pixels each, lines between them.
    with Image.open(Path(run) / "mae_recon_out" / "neighbours.png") as picture:
        assert picture.size == (32 * 6 + 2 * 4 + 6, 32 * 10 + 2 * 9)


def test_its_figures_in_the_shell(
    run: str, plain: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", run, "--data", plain.uri]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = dict(pair for pair in words if len(pair) == 2)
    assert {"psnr", "ssim", "rank_value", "rank_untrained", "rank_dimensions"} <= set(told)
    assert not any(name.startswith("knn") for name in told)


def test_the_gallery_shows_the_test_images_and_what_is_nearest(run: str, plain: Dataset) -> None:
    """The first column are test images; each neighbour is a training image."""
    from percmae.data.decode import decode

    with Image.open(Path(run) / "mae_recon_out" / "neighbours.png") as picture:
        shown = np.array(picture).astype(float)
    originals = {}
    for name in ("train", "test"):
        split = plain.split(name)
        shard, offset, size = split.locate(np.arange(len(split)))
        originals[name] = np.stack(
            [
                np.array(decode(split.shards[s].read_bytes(o, n))).astype(float)
                for s, o, n in zip(*(x.tolist() for x in (shard, offset, size)), strict=True)
            ]
        )

    def distance(tile: np.ndarray, name: str) -> float:
        return float(np.abs(originals[name] - tile).mean(axis=(1, 2, 3)).min())

    starts = [0, *(38 + 34 * k for k in range(5))]
    for row in range(10):
        for column, start in enumerate(starts):
            tile = shown[row * 34 : row * 34 + 32, start : start + 32]
            # The demo's evaluation crops the middle and enlarges nothing here: equal but rounding.
            assert distance(tile, "train" if column else "test") < 1


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_a_classifier_needs_labels(
    verb: str, run: str, plain: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", run, "--data", plain.uri, "--to", str(tmp_path)]
    assert main([verb, *given]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"percmae: error: {verb} needs labels, and {plain.uri} has none: give --data of a labelled "
        "dataset, or ingest the images in a folder for each class"
    ]
    assert list(tmp_path.iterdir()) == []


def test_knn_that_is_asked_for_needs_labels(
    plain: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", plain.uri, "--to", str(tmp_path), "--recipe", "demo", *SETTINGS]
    assert main(["pretrain", *given, "tracking.knn_samples=10"]) == 2
    line = f"percmae: error: tracking.knn_samples=10 needs labels, and {plain.uri} has none"
    assert capsys.readouterr().err.startswith(line)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def probed(run: str, some: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The encoder that was trained without labels, probed with some."""
    parent = Run.open(run)
    settings = ["data.workers=0", "optim.epochs=2", "data.batch_size=16", "trainer.threads=1"]
    config = downstream_config(parent, "probe", overrides=settings)
    return probe(config, parent, some.uri, str(tmp_path_factory.mktemp("probes")))


def test_of_partly_labelled_images_those_with_a_label_count(
    some: Dataset, tiny: Make, probed: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("tracking.images=0")
    assert len(train_images(config, some)) == len(some.split("train")) == 81
    used = train_images(probed.run.config, some)
    assert len(used) == some.labelled_images
    assert set(used.labels) == {0, 1}
    # Shares of the labels, too, are of those.
    assert (some.labelled(0.1).labels >= 0).all()
    alone = World(0, 1, torch.device("cpu"))
    assert set(eval_loader(probed.run.config, some, "test", alone).split.labels) == {0, 1}
    assert len(eval_loader(config, some, "test", alone).split) == 12
    found = evaluate(probed.uri, some.uri).evaluation
    assert isinstance(found, ClassifierEvaluation)
    assert found.samples.test == 8
    assert sum(map(sum, found.confusion)) == 8
    assert "8 of 12 test images have a label; these count" in capsys.readouterr().err


def test_a_classifier_is_not_judged_without_labels(
    probed: RunResult, plain: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", probed.uri, "--data", plain.uri]) == 2
    assert f"evaluating {probed.uri} needs labels" in last_line(capsys.readouterr().err)


def test_knn_and_rank_of_partly_labelled_images(some: Dataset, tiny: Make, tmp_path: Path) -> None:
    found = pretrain(tiny(), some.uri, str(tmp_path)).metrics
    assert {"val/rankme", "val/knn_top1"} <= set(found)
    held_out = some.split("val").labels
    queries = (held_out >= 0).sum()
    assert 0 < queries < len(held_out)
    assert found["val/knn_top1"] in [n / queries for n in range(queries + 1)]
    told = evaluate(str(tmp_path / "t_mae"), some.uri).evaluation
    assert isinstance(told, ReconstructionEvaluation)
    assert told.labelled
    assert told.knn is not None
    assert (told.knn.queries, told.knn.bank) == (8, some.labelled_images)
    assert told.rank is not None
    assert told.rank.images == 12
    assert told.embedding is not None
    assert set(told.embedding.labels) == {0, 1}
