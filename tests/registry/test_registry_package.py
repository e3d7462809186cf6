"""What a version holds, and what is done with it: it gives what the run gives, wherever it is."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import TINY
from PIL import Image
from s3_server import S3

from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.data.augment import framed_transform
from percmae.data.shards import Dataset
from percmae.engine.embed import embed, encoder
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import finetune, probe, trained_classifier
from percmae.engine.pretrain import pretrain
from percmae.errors import DataError, PercmaeError, UserError
from percmae.registry import onnx_files
from percmae.registry.files import Preprocess
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


@pytest.fixture(scope="module")
def models(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each stage, by its stage, and the fine-tuned one as it is pulled."""
    folder = tmp_path_factory.mktemp("models")
    found = {stage: f"{folder}/{stage}" for stage in ("pretrain", "probe", "finetune")}
    for stage, model in found.items():
        register(runs[stage].uri, reference(model))
    assert main(["models", "promote", f"{found['finetune']}@1"]) == 0
    found["pulled"] = str(folder / "pulled")
    pulled(f"{found['finetune']}@champion", found["pulled"])
    return found


@pytest.fixture(scope="module")
def photos(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of test images of the dataset, and two files that are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    split = tiny_dataset.split("test")
    for n, (shard, start, size) in enumerate(
        zip(*(part.tolist() for part in split.locate(np.arange(10))), strict=True)
    ):
        data = split.shards[shard].read_bytes(start, size)
        Image.open(io.BytesIO(data)).save(folder / f"{n}.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


def prepared(run: Run, photos: Path) -> torch.Tensor:
    """The ten images as the run's evaluation has them."""
    transform = framed_transform(run.config.data, False, run.config.stage)
    pixels = [
        transform.pixels((photos / f"{n}.png").read_bytes(), formats=["PNG"]) for n in range(10)
    ]
    return transform.finish(torch.from_numpy(np.stack(pixels)), torch.zeros(10, dtype=torch.bool))


def expected(run: Run, photos: Path) -> torch.Tensor:
    """The run's own logits of them."""
    with torch.no_grad():
        found: torch.Tensor = trained_classifier(run)(prepared(run, photos))
    return found


def test_preprocessing_is_said_and_read_alike(runs: dict[str, Run]) -> None:
    data = runs["probe"].config.data
    again = Preprocess.of(data).data
    assert Preprocess.of(again) == Preprocess.of(data)
    assert (again.image_size, again.augment.mean) == (data.image_size, data.augment.mean)


def test_predictions_are_the_runs(
    runs: dict[str, Run], models: dict[str, str], photos: Path, capfdbinary: Any
) -> None:
    command = ["predict", "--images", str(photos), "--top", "3", "--model"]
    assert main([*command, f"{models['finetune']}@champion"]) == 0
    out, err = capfdbinary.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == [f"{n}.png" for n in range(10)]
    labels = json.loads(Path(models["pulled"], "labels.json").read_text())
    for row, shares in zip(rows, expected(runs["finetune"], photos).softmax(1), strict=True):
        best = shares.topk(3)
        assert [g["label"] for g in row["top"]] == [labels[k]["id"] for k in best.indices]
        told = [g["probability"] for g in row["top"]]
        np.testing.assert_allclose(told, best.values, atol=2e-5)
    for named in (
        b"left out: image",
        b"cut.png",
        b"damaged.jpg",
        b"left out 2 damaged image(s) of 12",
    ):
        assert named in err
    # The same from the pulled folder.
    assert main([*command, models["pulled"]]) == 0
    assert capfdbinary.readouterr().out == out


def test_predictions_in_a_file_whole_or_not_at_all(
    models: dict[str, str], photos: Path, tmp_store: StorePath, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(3):
        (tmp_store / f"in/{n}.png").write_bytes((photos / f"{n}.png").read_bytes())
    to = (tmp_store / "out.csv").uri
    command = ["predict", "--model", f"{models['probe']}@1", "--format", "csv", "--to", to]
    images = ["--images", (tmp_store / "in").uri]
    assert main([*command, *images]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    head, *rows = csv.reader(io.StringIO(StorePath(to).read_text()))
    assert len(head) == 1 + 3 * 4  # all four classes: there are no more
    assert head[:4] == ["image", "label_1", "name_1", "probability_1"]
    assert [row[0] for row in rows] == ["0.png", "1.png", "2.png"]
    assert sum(float(row[k]) for row in rows for k in (3, 6, 9, 12)) == pytest.approx(3, abs=1e-4)
    assert main([*command, *images]) == 2
    assert "out.csv exists; add --force" in capsys.readouterr().err
    (tmp_store / "in/0.png").delete()
    (tmp_store / "damaged/1.png").write_bytes(b"no picture")
    damaged = ["--images", (tmp_store / "damaged").uri, "--force"]
    assert main([*command, *damaged]) == 2
    assert "none of 1 image(s) can be read" in capsys.readouterr().err
    assert len(StorePath(to).read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        (["predict", "--model", "{pretrain}@1"], "is a pretraining, which tells no classes"),
        (["predict", "--model", "{pretrain}/none"], "there is neither a model (a folder with"),
        (["predict", "--model", "{probe}@9"], "model probe has no version 9"),
        (["predict", "--model", "{probe}", "--top", "0"], "--top 0: give 1 or more"),
        (["embed", "--model", "{probe}", "--split", "val", "--out", "f.npz"], "--split val: is of"),
        (["export", "--format", "mae", "--model", "{probe}", "--to", "f"], "takes a --run"),
        (["export", "--format", "onnx", "--run", "r", "--to", "f"], "takes a --model"),
    ],
)
def test_what_is_refused_in_one_line(
    models: dict[str, str],
    photos: Path,
    verb: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [part.format(**models) for part in verb]
    assert main([*given, "--images", str(photos / "0.png")]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_features_of_a_version_are_the_runs(
    runs: dict[str, Run], models: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as parquet

    out = tmp_path / "f.parquet"
    whole = [str(photos / f"{n}.png") for n in range(10)]
    for of in (["--run", runs["pretrain"].uri], ["--model", f"{models['pretrain']}@latest"]):
        assert main(["embed", *of, "--images", str(photos), "--out", str(out)]) == 0
        table = parquet.read_table(out)
        assert table["key"].to_pylist() == [f"{n}.png" for n in range(10)]
        found = np.array(table["features"].to_pylist())
        np.testing.assert_allclose(
            found, embed(runs["pretrain"], whole).features, atol=1e-5, rtol=1e-5
        )
    # Of a classifier's version they are what its last layer is given.
    assert main(["embed", "--model", models["pulled"], "--images", *whole, "--out", str(out)]) == 0
    rows = torch.tensor(parquet.read_table(out)["features"].to_pylist())
    with torch.no_grad():
        logits = trained_classifier(runs["finetune"]).classify(rows)
    torch.testing.assert_close(logits, expected(runs["finetune"], photos), atol=1e-4, rtol=1e-4)


def look_at(file: Path, images: torch.Tensor, triton: str) -> np.ndarray:
    """What an ONNX file says of itself, and what it gives of images."""
    import onnx
    import onnxruntime

    read = onnx.load(file)
    assert [each.version for each in read.opset_import if not each.domain] == [onnx_files.OPSET]
    assert str(Path(__file__).parents[2]) not in file.read_bytes().decode("latin-1")
    told = {
        each.key: json.loads(each.value) for each in read.metadata_props if each.value[0] == "{"
    }
    assert Preprocess(**told["preprocess"]).centre_crop == images.shape[-1]
    session = onnxruntime.InferenceSession(file)
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", *images.shape[1:]])
    assert f'name: "{output.name}" data_type: TYPE_FP32 dims: [ {output.shape[1]} ]' in triton
    found: np.ndarray = session.run(None, {"images": images.numpy()})[0]
    return found


@pytest.mark.slow
def test_onnx_gives_what_torch_gives(
    runs: dict[str, Run],
    models: dict[str, str],
    photos: Path,
    s3: S3,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    to, model = StorePath(s3.uri("onnx")), f"{models['finetune']}@champion"
    command = ["export", "--format", "onnx", "--model", model, "--to", to.uri]
    assert main(command) == 0
    lines = [line.split("  ") for line in capfd.readouterr().out.splitlines()]
    summary = (to / "onnx.json").read_json()
    sums = [f"sha256:{each['sha256']}" for each in summary["files"].values()]
    assert sums == [sum_of for sum_of, _ in lines]
    pixels = prepared(runs["finetune"], photos)
    logits = expected(runs["finetune"], photos)
    assert summary["networks"]["classifier"]["furthest_from_torch"] < onnx_files.TOLERANCE
    for name in ("encoder", "classifier"):
        file = tmp_path / f"{name}.onnx"
        (to / name / "1/model.onnx").read_file(file)
        found = torch.from_numpy(look_at(file, pixels, (to / name / "config.pbtxt").read_text()))
        if name == "encoder":
            with torch.no_grad():
                found = trained_classifier(runs["finetune"]).classify(found)
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    assert (to / "labels.json").read_bytes() == Path(models["pulled"], "labels.json").read_bytes()
    assert main(command) == 2
    assert "is not empty" in capfd.readouterr().err


@pytest.mark.slow
def test_onnx_is_written_whole_or_not_at_all(
    models: dict[str, str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, model = tmp_path / "onnx", models["pretrain"]
    images = [str(photos / f"{n}.png") for n in range(10)]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_files, "TOLERANCE", 0.0)
        with pytest.raises(PercmaeError, match=r"encoder: what ONNX gives is up to .* from what"):
            onnx_files.export_onnx(model, str(to), images)
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(UserError, match=r"onnxscript is not installed; pip install 'percmae\["):
            onnx_files.export_onnx(model, str(to), images)
    assert not to.exists()
    written = {Path(file.uri).name for file in onnx_files.export_onnx(model, str(to), images)}
    assert written == {"model.onnx", "config.pbtxt", "preprocess.json"}


def test_a_dataset_that_is_gone_asks_for_images(models: dict[str, str], tmp_path: Path) -> None:
    file = Path(models["pulled"]) / "evaluation.json"
    kept = file.read_text()
    evaluation = json.loads(kept)
    evaluation["data"]["uri"] = str(tmp_path / "gone" / "manifest.json")
    file.write_text(json.dumps(evaluation))
    try:
        with pytest.raises(DataError, match=r"gone/manifest\.json.*; --images names others"):
            onnx_files.export_onnx(models["pulled"], str(tmp_path / "onnx"))
    finally:
        file.write_text(kept)
