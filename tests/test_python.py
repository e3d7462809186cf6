"""The verbs from Python: what they take and give, features of images, the encoder, start-up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import TINY
from PIL import Image
from texts import ROOT, blocks
from unlabelled import pattern, write_dataset

import percmae
from percmae.api import settings_of
from percmae.cli.verbs import main
from percmae.config import FORMATS, load_config, to_dict
from percmae.data.augment import framed_transform
from percmae.data.mixture import Mixture
from percmae.data.shards import Dataset
from percmae.engine import evaluate as evaluating
from percmae.engine.distributed import World
from percmae.errors import ConfigError, DataError, UserError
from percmae.runs.evaluation import ClassifierEvaluation, ReconstructionEvaluation
from percmae.runs.record import Run
from percmae.stages.steps import dataset_name
from percmae.storage import StorePath

DOCUMENT = ROOT / "docs" / "python.md"
SMALL: dict[str, Any] = {
    key: json.loads(value)
    for key, _, value in (setting.partition("=") for setting in TINY)
    if not key.startswith("data.augment")
}


def folder_of_images(folder: Path, count: int = 5) -> Path:
    """Pictures in two folders, one of them in another form, and something that is none."""
    for number in range(count):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        pattern(number, number, 40).save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    (folder / "notes.txt").write_text("no picture")
    (folder / "a" / "._1.png").write_bytes(b"what a file manager leaves")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("data"), [0, 1] * 30, [0, 1] * 6, ["n01", "n02"])


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    to = str(tmp_path_factory.mktemp("runs"))
    return percmae.pretrain(data=dataset, to=to, recipe="demo", tag="t", **SMALL)


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, percmae, percmae.cli.parser; percmae.cli.parser.build_parser();"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'pydantic'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_name_is_there() -> None:
    for name in percmae.__all__:
        assert getattr(percmae, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        percmae.pretrian  # type: ignore[attr-defined]  # noqa: B018


def test_pretrain_is_what_the_command_line_does(run: Run, dataset: Dataset) -> None:
    assert (run.record.name, run.complete, run.record.data.uri) == ("t_mae", True, dataset.uri)
    assert run.metrics["val/rankme"] is not None
    words = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    config = load_config("mae", "demo", "pretrain", overrides=words, tag="t")
    assert to_dict(run.config) | {"data": 0} == to_dict(config) | {"data": 0}
    # As the shell would: the same run is reused, by any way of saying what it was trained on.
    to = run.path.parent.uri
    given = ["--data", dataset.uri, "--to", to, "--recipe", "demo", "--tag", "t", *words]
    assert main(["pretrain", *given, "--resume", "auto"]) == 0
    again = percmae.pretrain(data=[dataset.uri], to=to, recipe="demo", tag="t", **SMALL)
    assert again.record == run.record


def test_settings_by_section_and_by_name() -> None:
    nested = {"optim": {"lr": 1e-5, "betas": (0.9, 0.95)}, "model.mask_ratio": 0.5, "seed": 3}
    given = settings_of(nested)
    assert given == [
        "optim.lr=1e-05",
        "optim.betas=[0.9, 0.95]",
        "model.mask_ratio=0.5",
        "seed=3",
    ]
    config = load_config(overrides=given)
    assert (config.optim.lr, config.model.mask_ratio, config.seed) == (1e-5, 0.5, 3)
    with pytest.raises(ConfigError, match=r"setting model\.patch_size: object is no kind"):
        settings_of({"model": {"patch_size": object()}})
    with pytest.raises(ConfigError, match=r"unknown config key 'optm\.lr'"):
        percmae.pretrain(data="none.json", optm={"lr": 1})
    with pytest.raises(UserError, match=r"by their dotted names, as in \*\*\{\"data\.batch_size"):
        percmae.pretrain(data={"batch_size": 16})


@pytest.mark.parametrize("given", [{}, {"data": "a.json", "images": "b"}])
def test_data_or_images(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="one of the two"):
        percmae.pretrain(**given)


def test_sources_of_one_name_have_datasets_of_their_own(tmp_path: Path) -> None:
    one, other = dataset_name(str(tmp_path / "a" / "cats")), dataset_name("s3://bucket/cats/")
    assert one != other
    assert re.fullmatch(r"cats-[0-9a-f]{8}", one)
    assert other == dataset_name("s3://bucket//cats")
    assert re.fullmatch(r"my-photos-2-[0-9a-f]{8}", dataset_name("s3://bucket/my photos.2"))


def test_several_datasets(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    more = write_dataset(tmp_path / "more", first=500)
    to = str(tmp_path / "runs")
    both = percmae.pretrain(data=[dataset, more.uri], to=to, recipe="demo", **SMALL)
    assert both.record.data.digest == Mixture([dataset, more]).digest


def test_what_builds_upon_a_run(run: Run, dataset: Dataset) -> None:
    settings: dict[str, Any] = {
        "optim": {"epochs": 2},
        "trainer.threads": 1,
        "data.workers": 0,
        "data.batch_size": 16,
    }
    probed = percmae.probe(run, **settings)
    assert probed.uri == f"{run.uri}_probe"
    control = percmae.probe(run.uri, features="untrained", data=dataset.uri, **settings)
    assert control.record.built_on == "untrained"
    tuned = percmae.finetune(run, **{**settings, "optim.warmup_epochs": 0})
    assert tuned.uri == f"{run.uri}_finetune"
    found = percmae.evaluate(probed)
    assert isinstance(found, ClassifierEvaluation)
    assert found.samples.test == 12
    told = percmae.evaluate(run.uri, data=dataset)
    assert isinstance(told, ReconstructionEvaluation)
    assert told.rank is not None
    with pytest.raises(UserError, match="is a probe run; give a pretraining run"):
        percmae.embed(probed, dataset)


def network(run: Run) -> torch.nn.Module:
    return evaluating.pretrained_generator(run, World(0, 1, torch.device("cpu")))


def prepared(run: Run, files: list[Path]) -> torch.Tensor:
    transform = framed_transform(run.config.data, False, "pretrain")
    pixels = [
        transform.pixels(file.read_bytes(), name=str(file), formats=FORMATS) for file in files
    ]
    unturned = torch.zeros(len(files), dtype=torch.bool)
    return transform.finish(torch.from_numpy(np.stack(pixels)), unturned)


def test_the_encoder_is_ours_in_timms_form(run: Run) -> None:
    from timm.models import VisionTransformer

    encoder = percmae.encoder(run)
    assert isinstance(encoder, VisionTransformer)
    assert not encoder.training
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours: Any = network(run)
    everywhere = torch.arange(ours.patches).expand(4, -1)
    with torch.no_grad():
        expected = ours.encode(ours.patchify(images), everywhere)
        torch.testing.assert_close(encoder.forward_features(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def test_features_are_the_mean_of_its_patch_tokens(run: Run, tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images")
    found = percmae.embed(run, str(folder))
    assert found.keys == ["a/1.png", "a/3.png", "b/0.jpg", "b/2.jpg", "b/4.jpg"]
    assert (found.features.shape, found.features.dtype) == ((5, 24), np.float32)
    images = prepared(run, [folder / key for key in found.keys])
    with torch.no_grad():
        tokens = percmae.encoder(run).forward_features(images)
    np.testing.assert_allclose(found.features, tokens[:, 1:].mean(1), atol=1e-5, rtol=1e-5)
    assert not np.allclose(found.features[0], found.features[1], atol=1e-3)


def test_every_way_to_give_images(
    run: Run, tmp_path: Path, tmp_store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_images(tmp_path / "images")
    expected = percmae.embed(run, folder)
    for key in expected.keys:
        (tmp_store / key).write_bytes((folder / key).read_bytes())
    stored = percmae.embed(run, tmp_store.uri)
    assert stored.keys == expected.keys
    np.testing.assert_array_equal(stored.features, expected.features)
    paths = [str(folder / key) for key in reversed(expected.keys)]
    # In chunks, and mixed with pictures in memory; a transparent one lies over white.
    monkeypatch.setattr("percmae.engine.images.CHUNK", 2)
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    listed = percmae.embed(run.uri, [*paths, clear, Image.new("L", (40, 40), 255)])
    assert listed.keys == [*paths, "5", "6"]
    np.testing.assert_allclose(listed.features[:5], expected.features[::-1], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(listed.features[5], listed.features[6], atol=1e-5)
    one = percmae.embed(run, paths[0])
    assert one.keys == ["4.jpg"]
    np.testing.assert_allclose(one.features[0], expected.features[-1], atol=1e-5, rtol=1e-5)


def test_features_of_a_dataset(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    found = percmae.embed(run, dataset)
    splits = [percmae.embed(run, dataset.uri, split=name) for name in ("train", "val", "test")]
    assert found.keys == [key for split in splits for key in split.keys]
    assert len(found.keys) == 72
    assert splits[2].keys == [key.decode() for key in dataset.split("test").keys]
    np.testing.assert_allclose(
        found.features, np.concatenate([split.features for split in splits]), atol=1e-5
    )
    # The same as of its images as files.
    split = dataset.split("test")
    shard, offset, size = (int(values[3]) for values in split.locate(np.arange(12)))
    (tmp_path / "3.jpg").write_bytes(split.shards[shard].read_bytes(offset, size))
    alone = percmae.embed(run, tmp_path / "3.jpg")
    np.testing.assert_allclose(alone.features[0], splits[2].features[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ("nowhere", r"nowhere: there is no image there; give a folder or prefix with files that"),
        (["nowhere.jpg"], r"image .*nowhere\.jpg: there is no such file"),
        ([], "no image is given"),
        ("damaged", r"image .*damaged/1\.jpg .*"),
    ],
)
def test_images_that_cannot_be_had(run: Run, tmp_path: Path, images: Any, line: str) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "1.jpg").write_bytes(b"\xff\xd8 no picture")
    given = str(tmp_path / images) if isinstance(images, str) else images
    with pytest.raises(DataError, match=line):
        percmae.embed(run, given)


def test_embed_from_the_shell(
    run: Run, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of_images(tmp_path / "images"), tmp_path / "out" / "features.npz"
    assert main(["embed", "--run", run.uri, "--images", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = percmae.embed(run, folder)
    with np.load(out) as written:
        assert written["keys"].tolist() == expected.keys
        np.testing.assert_array_equal(written["features"], expected.features)
    first = out.read_bytes()
    assert main(["embed", "--run", run.uri, "--images", str(folder), "--out", str(out)]) == 0
    assert out.read_bytes() == first
    some = ["--images", dataset.uri, "--split", "test", "--out", str(tmp_path / "test.npz")]
    assert main(["embed", "--run", run.uri, *some]) == 0
    with np.load(tmp_path / "test.npz") as written:
        assert written["features"].shape == (12, 24)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--out", "f.csv"], "--out f.csv: give a name that ends in .npz or .parquet"),
        (["--out", "f.npz", "--split", "test"], "split 'test': only a dataset has splits"),
    ],
)
def test_what_embed_refuses(
    options: list[str],
    line: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = folder_of_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "--run", run.uri, "--images", str(folder), *options]) == 2
    assert line in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_parquet_needs_a_package(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    given = ["--run", run.uri, "--images", "x", "--out", str(tmp_path / "f.parquet")]
    assert main(["embed", *given]) == 2
    assert (
        "pyarrow, which writes it, is not installed; pip install 'percmae[parquet]'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("group", "groups"), [(1, 3), (16 << 20, 1)])
def test_parquet(
    run: Run, tmp_path: Path, group: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet

    monkeypatch.setattr("percmae.engine.images.CHUNK", 2)
    monkeypatch.setattr("percmae.engine.embed.GROUP_BYTES", group)

    folder, out = folder_of_images(tmp_path / "images"), tmp_path / "f.parquet"
    assert main(["embed", "--run", run.uri, "--images", str(folder), "--out", str(out)]) == 0
    expected = percmae.embed(run, folder)
    assert parquet.ParquetFile(out).num_row_groups == groups
    table = parquet.read_table(out)
    assert table["key"].to_pylist() == expected.keys
    np.testing.assert_array_equal(np.array(table["features"].to_pylist()), expected.features)


def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of docs/python.md, one after another, on small images."""
    examples = [block.text for block in blocks(DOCUMENT) if block.language == "python"]
    assert len(examples) >= 3
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "photos", 40)
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(DOCUMENT), "exec"), names)
    run, features = names["run"], names["features"]
    assert features.shape == (40, 192)
    tokens = names["tokens"]
    assert tokens.shape == (4, 1 + 16, 192)
    # The folder has become a dataset beside the run, and is not made a second time.
    folder = tmp_path / "runs" / "datasets" / dataset_name("photos")
    assert run.record.data.uri.startswith(str(folder))
    dataset = Dataset.open(run.record.data.uri)
    assert [info.name for info in dataset.classes] == ["a", "b"]
    before = run.record
    exec(compile(examples[0], str(DOCUMENT), "exec"), names)
    assert names["run"].record == before
