"""What a version holds: opened by timm alone, it gives what the run gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fixtures_data import TINY

from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.data.shards import Dataset
from percmae.engine.embed import encoder
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import finetune, probe, trained_classifier
from percmae.engine.pretrain import pretrain
from percmae.errors import DataError, UserError
from percmae.registry.model import reference
from percmae.registry.package import register
from percmae.registry.verbs import pulled
from percmae.runs.downstream import downstream_config
from percmae.runs.record import Run
from percmae.storage import StorePath
from percmae.vision import load_timm

SHORT = ["data.workers=0", "trainer.threads=1", "optim.epochs=1", "data.batch_size=16"]


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A pretraining and what builds upon it, evaluated; and one fine-tuning that is not."""
    to = str(tmp_path_factory.mktemp("runs"))
    data = tiny_dataset.uri
    parent = pretrain(load_config("ssim", "demo", overrides=TINY, tag="r"), data, to).run
    found = {"pretrain": parent}
    for stage, train in (("probe", probe), ("finetune", finetune)):
        found[stage] = train(
            downstream_config(parent, stage, overrides=SHORT), parent, data, to
        ).run
    for run in found.values():
        evaluate(run.uri, data)
    few = downstream_config(parent, "finetune", overrides=[*SHORT, "data.label_fraction=0.5"])
    found["unjudged"] = finetune(few, parent, data, to).run
    pixels = downstream_config(parent, "probe", overrides=SHORT)
    found["pixels"] = probe(pixels, parent, data, to, features="pixels").run
    return found


@pytest.mark.parametrize("stage", ["probe", "finetune"])
def test_timm_alone_gives_the_runs_logits(
    runs: dict[str, Run], stage: str, tmp_store: StorePath, tmp_path: Path
) -> None:
    run = runs[stage]
    version = register(run.uri, reference(f"{tmp_store.uri}/models/tiny"))
    assert (version.version, version.stage, version.key) == (1, stage, run.key)
    assert version.metrics["top1"] is not None
    to = tmp_path / "pulled"
    written = pulled(f"{tmp_store.uri}/models/tiny@latest", str(to))
    assert len(written) == len(version.files) == 8
    side = run.config.data.image_size
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    ours = trained_classifier(run)
    theirs = load_timm().create_model(f"local-dir:{to}/classifier", pretrained=True).eval()
    features = load_timm().create_model(f"local-dir:{to}/encoder", pretrained=True).eval()
    with torch.no_grad():
        logits = theirs(images)
        torch.testing.assert_close(logits, ours(images), atol=1e-4, rtol=1e-4)
        assert logits.std() > 1e-3
        torch.testing.assert_close(features(images), ours.encoder(images), atol=1e-5, rtol=1e-5)
    labels = json.loads((to / "labels.json").read_text())
    assert len(labels) == logits.shape[1]
    assert theirs.pretrained_cfg["label_names"] == [label["name"] for label in labels]
    card = (to / "README.md").read_text()
    assert run.uri in card
    assert f"| top-1 | {version.metrics['top1']:.1%} |" in card
    preprocess = json.loads((to / "preprocess.json").read_text())
    assert preprocess["mean"] == run.config.data.augment.mean
    assert preprocess["centre_crop"] == side


def test_a_pretraining_is_an_encoder(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["pretrain"]
    version = register(run.uri, reference(f"{tmp_path}/models/enc"))
    assert {"psnr", "ssim", "knn_top1", "rankme"} <= version.metrics.keys()
    pulled(f"{tmp_path}/models/enc", str(tmp_path / "out"))
    side = run.config.data.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    theirs = load_timm().create_model(f"local-dir:{tmp_path}/out/encoder", pretrained=True).eval()
    with torch.no_grad():
        expected = encoder(run).forward_features(images)
        torch.testing.assert_close(theirs.forward_features(images), expected)
    assert "`encoder`" not in (tmp_path / "out" / "README.md").read_text()


def test_the_same_run_gives_the_same_bytes(runs: dict[str, Run], tmp_path: Path) -> None:
    one, two = (register(runs["probe"].uri, reference(f"{tmp_path}/{x}/m")) for x in "ab")
    assert one.files == two.files


def test_what_cannot_be_a_version(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = reference(f"{tmp_path}/models/m")
    with pytest.raises(UserError, match=r"has no test figures.* percmae evaluate --run"):
        register(runs["unjudged"].uri, asked)
    with pytest.raises(UserError, match="a probe of pixels"):
        register(runs["pixels"].uri, asked)
    with pytest.raises(DataError, match="is not a run"):
        register(str(tmp_path), asked)
    assert not list(StorePath(tmp_path / "models").iter())
    assert main(["models", "add", str(asked), "--run", runs["probe"].uri]) == 0
    assert capsys.readouterr().out.strip() == f"{asked}@1"


def test_pull_checks_what_it_copies(runs: dict[str, Run], tmp_path: Path) -> None:
    version = register(runs["probe"].uri, reference(f"{tmp_path}/m"))
    file = tmp_path / "m" / version.folder / "labels.json"
    file.write_text(file.read_text().replace("0", "1", 1))
    with pytest.raises(DataError, match=r"labels\.json: its SHA-256 is not the one"):
        pulled(f"{tmp_path}/m@1", str(tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        pulled(f"{tmp_path}/m@1", str(tmp_path / "full"))
