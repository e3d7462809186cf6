"""What a version holds, and what is done with it: it gives what the run gives, wherever it is; and
two held against each other. (One file, though a long one: all of it uses the same trained runs.)"""

from __future__ import annotations

import csv
import html
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
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
from percmae.data.sample import SampleArchives
from percmae.data.shards import Dataset
from percmae.data.split_digest import split_digest
from percmae.engine.embed import embed, encoder
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import finetune, probe, trained_classifier
from percmae.engine.pretrain import pretrain
from percmae.errors import DataError, PercmaeError, UserError
from percmae.ingest import ingest
from percmae.jobs.settings import JobSettings
from percmae.jobs.work import Work
from percmae.registry import onnx_files
from percmae.registry.files import Preprocess
from percmae.registry.judging import SHOWN, Decision
from percmae.registry.model import Reference, Version, read_file, read_model, reference
from percmae.registry.moves import promote
from percmae.registry.package import register
from percmae.registry.verbs import pulled
from percmae.runs.downstream import downstream_config
from percmae.runs.predictions import PREDICTIONS, Predictions, parse_predictions
from percmae.runs.record import Run
from percmae.stages import retrain
from percmae.stages.challenge import challenge
from percmae.stages.placement import Placement
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
    assert len(written) == len(version.files) == 9
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


def test_a_listed_version_keeps_its_files(runs: dict[str, Run], tmp_path: Path) -> None:
    asked = reference(f"{tmp_path}/m")
    version = register(runs["probe"].uri, asked)
    evaluation = runs["probe"].path / "evaluation.json"
    before = evaluation.read_bytes()
    evaluation.write_bytes(before.replace(b'"samples"', b'"former"', 1))
    try:
        assert register(runs["probe"].uri, asked) == version
    finally:
        evaluation.write_bytes(before)
    pulled(str(asked), str(tmp_path / "out"))


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


def answered(version: Version, asked: Reference) -> Predictions:
    return parse_predictions(read_file(asked.path, version, PREDICTIONS), "it")


def refuse(run: str, data: str) -> None:
    raise AssertionError(f"{run} is evaluated on {data} although its answers are there")


def test_a_challenge_on_common_images(
    runs: dict[str, Run], tiny_dataset: Dataset, tmp_store: StorePath
) -> None:
    asked = reference(f"{tmp_store.uri}/models/tiny@challenger")
    first, second = (register(runs[name].uri, asked) for name in ("probe", "finetune"))
    promote(asked._replace(which="1"), "challenger")
    judged = challenge(asked, [], refuse, carry_out=True)
    assert judged.decision.why == (
        "version 1 becomes champion: there is no champion to hold it against"
    )
    assert read_model(asked.path).aliases["champion"] == 1
    promote(asked._replace(which="2"), "challenger", instead_of=1)
    rule = ["max_class_drop=null", "level=0.999"]
    judged = challenge(asked, rule, refuse, carry_out=True)
    decision = judged.decision
    ours, theirs = answered(first, asked), answered(second, asked)
    keys = tiny_dataset.split("test").keys.tolist()
    assert ours.keys == theirs.keys == [key.decode() for key in keys]
    assert ours.labels == tiny_dataset.split("test").labels.tolist()
    right = [
        sum(answer == label for answer, label in zip(of.predicted, of.labels, strict=True))
        for of in (ours, theirs)
    ]
    shares = [count / len(keys) for count in right]
    assert [version.metrics["top1"] for version in (first, second)] == shares
    assert decision.champion is not None
    assert [decision.champion.share, decision.challenger.share] == shares
    assert decision.gain == pytest.approx(shares[1] - shares[0])
    differ = sum(a != b for a, b in zip(ours.predicted, theirs.predicted, strict=True))
    assert decision.differing == differ > 0
    assert len(decision.shown) == min(differ, SHOWN)
    assert decision.outcome == ("promote" if right[1] > right[0] else "keep")
    assert read_model(asked.path).aliases["champion"] == (2 if right[1] > right[0] else 1)
    page = judged.html.read_text()
    assert page.count("data:image/png") == len(decision.shown)
    assert decision.why[1:] in html.unescape(page)
    assert Decision.model_validate_json(judged.json.read_bytes()) == decision


def test_a_champion_of_other_test_images_is_evaluated_on_the_challengers(
    runs: dict[str, Run], tiny_archives: SampleArchives, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """And where a challenger's images are gone, or a run is another, that is said."""
    asked = reference(f"{tmp_path}/models/tiny@2")
    register(runs["finetune"].uri, asked)
    promote(asked._replace(which="1"))
    # The same test images but for some: a dataset of the same images in another place.
    images = Path(tiny_archives.train).parent.parent / "images"
    shutil.copytree(images, tmp_path / "images")
    shutil.move(tmp_path / "images" / "val", tmp_path / "images" / "test")
    names = {info.name: info.wnid for info in tiny_dataset.classes}
    for split in ("train", "test"):
        for folder in (tmp_path / "images" / split).iterdir():
            folder.rename(folder.with_name(names[folder.name]))
    other = ingest(images=str(tmp_path / "images"), to=str(tmp_path / "data")).dataset
    assert split_digest(other, "test") != split_digest(tiny_dataset, "test")
    copied = tmp_path / "runs" / "probe"
    shutil.copytree(runs["probe"].uri, copied)
    evaluate(str(copied), other.uri)
    register(str(copied), asked)
    asked_for: list[tuple[str, str]] = []

    def evaluated(run: str, data: str) -> None:
        asked_for.append((run, data))
        evaluate(run, data)

    try:
        decision = challenge(asked, [], evaluated).decision
        assert asked_for == [(runs["finetune"].uri, other.uri)]
        assert decision.test == split_digest(other, "test")
        # What the version holds stays what it was.
        pulled(str(asked._replace(which="1")), str(tmp_path / "out"))
    finally:
        evaluate(runs["finetune"].uri, tiny_dataset.uri)
    change = {"key": "sha256:other"}
    runs["finetune"].save(**change)
    try:
        with pytest.raises(DataError, match="is not what version 1 was made of any more"):
            challenge(asked, [], refuse)
    finally:
        runs["finetune"].save(key=read_model(asked.path).version(1).key)


def test_judging_from_the_command_line(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{tmp_path}/models/m"
    for name in ("probe", "finetune", "pretrain"):
        register(runs[name].uri, reference(model))
    promote(reference(f"{model}@1"))
    assert main(["models", "judge", f"{model}@1", "--against", "champion"]) == 0
    said, page = capsys.readouterr().out.splitlines()
    assert said == "version 1 stays champion: it is champion already"
    assert page == f"{model}/decisions/1-against-1.html"
    words = ["models", "judge", f"{model}@2", "--rule", "level=0.999", "--rule", "max_class_drop=1"]
    assert main(words) == 0
    assert "the same 40 images" in capsys.readouterr().out
    assert read_model(StorePath(model)).aliases["champion"] == 1
    for bad, message in (
        (f"{model}", "say which version"),
        (f"{model}@3", "version 3 is a pretraining"),
        (f"{model}@9", "has no version 9"),
    ):
        assert main(["models", "judge", bad]) == 2
        assert message in capsys.readouterr().err


def test_figures_without_answers_are_made_anew(runs: dict[str, Run], tmp_path: Path) -> None:
    """As an earlier percmae has left them."""
    run = runs["probe"]
    file = run.path / PREDICTIONS
    data = file.read_bytes()
    file.delete()
    with pytest.raises(UserError, match="has no test figures"):
        register(run.uri, reference(f"{tmp_path}/m"))
    assert not evaluate(run.uri, run.record.data.uri).reused
    assert file.read_bytes() == data
    assert evaluate(run.uri, run.record.data.uri).reused


@pytest.mark.parametrize("launcher", ["local", "job"])
def test_the_last_step_of_a_retraining(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """In the image of a pipeline's steps, which has no torch, a job adds the version."""
    launched: list[Work] = []

    def carry_out(work: Work, settings: JobSettings, pipeline_run: str) -> None:
        launched.append(work)
        assert main(list(work.arguments)) == 0

    monkeypatch.setattr("percmae.stages.launch.launch", carry_out)
    model = SimpleNamespace(metadata={"uri": runs["finetune"].uri})
    logged: dict[str, float] = {}
    page: Any = SimpleNamespace(path=str(tmp_path / "page.html"), metadata={})
    metrics: Any = SimpleNamespace(log_metric=logged.__setitem__)
    for _ in range(2):  # as it is when its pod was made anew
        words = (model, str(tmp_path), "m", [], page, metrics, Placement(launcher))
        retrain.judge(*words)  # type: ignore[arg-type]
    assert [work.arguments[:2] for work in launched] == [("models", "add")] * (launcher == "job")
    found = read_model(StorePath(f"{tmp_path}/models/m"))
    assert found.aliases == {"latest": 1, "challenger": 1, "champion": 1}
    why = "version 1 becomes champion: there is no champion to hold it against"
    assert page.metadata["why"] == why
    assert logged["promoted"] == 1
    assert why[1:] in Path(page.path).read_text()
