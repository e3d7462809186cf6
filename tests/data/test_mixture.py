"""Several datasets as one: its images and labels, what it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_data import TINY
from unlabelled import pattern, write_dataset

from percmae.cli.submit import work_of
from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.data.addresses import addresses, joined
from percmae.data.augment import build_transform
from percmae.data.mixture import Mixture, open_data
from percmae.data.shards import UNLABELLED, Dataset
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.loaders import eval_loader
from percmae.errors import DataError, UserError
from percmae.ingest import ingest
from percmae.runs.record import Run, identity_of
from percmae.storage import StorePath

SETTINGS = [s for s in TINY if not s.startswith(("data.augment", "trainer.val"))]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Cats and dogs; dogs and owls with some unlabelled; and images without any label."""
    root = tmp_path_factory.mktemp("parts")
    other = [0, 1, UNLABELLED] * 15
    return [
        write_dataset(root / "a", [0] * 20 + [1] * 20, [0, 1] * 3, ["cat", "dog"]),
        write_dataset(root / "b", other, other[:9], ["dog", "owl"], first=1000),
        write_dataset(root / "c", first=1_000_000),
    ]


def loaded(split: object) -> tuple[np.ndarray, list[int]]:
    config = load_config("mae", "demo", "pretrain", overrides=["data.image_size=32"])
    augment = config.data.augment
    augment.mean, augment.std = [0.5] * 3, [0.5] * 3
    transform = build_transform(augment, 32, False, "pretrain")
    loader = Loader(split, transform, batch_size=7, seed=0, shuffle=False, drop_last=False)  # type: ignore[arg-type]
    batches = [batch for _, _, batch in loader.batches()]
    images = np.concatenate([batch.images.numpy() for batch in batches])
    return images, [label for batch in batches for label in batch.labels.tolist()]


def test_images_one_dataset_after_another_with_labels_of_the_union(parts: list[Dataset]) -> None:
    mixture = open_data(joined([part.uri for part in parts]))
    assert isinstance(mixture, Mixture)
    assert [info.wnid for info in mixture.classes] == ["cat", "dog", "owl"]
    for name in ("train", "val", "test"):
        images, labels = loaded(mixture.split(name))
        each = [loaded(part.split(name)) for part in parts]
        np.testing.assert_array_equal(images, np.concatenate([found for found, _ in each]))
        # b's dog is the union's second class, its owl the third; no label stays none.
        shifted = [label if label == UNLABELLED else label + 1 for label in each[1][1]]
        assert labels == [*each[0][1], *shifted, *each[2][1]]
        keys = [key for part in parts for key in part.split(name).keys.tolist()]
        assert mixture.split(name).keys.tolist() == keys
    assert set(mixture.split("train").labels) == {UNLABELLED, 0, 1, 2}
    assert mixture.labelled_images == sum(part.labelled_images for part in parts)


def test_one_address_is_the_dataset_itself(parts: list[Dataset]) -> None:
    assert isinstance(open_data(parts[0].uri), Dataset)
    assert addresses("s3://b/a,b/manifest.json") == ["s3://b/a,b/manifest.json"]
    two = ["s3://b/x,y/manifest.json", "/c.json"]
    assert addresses(joined(two)) == two


def test_what_it_is_follows_from_its_parts_and_their_order(parts: list[Dataset]) -> None:
    config = load_config("mae", "demo")
    one, other = Mixture(parts[:2]), Mixture(parts[1::-1])
    assert one.digest != other.digest
    assert one.digest == Mixture(parts[:2]).digest
    keys = {identity_of(config, data).key for data in (*parts, one, other, Mixture(parts))}
    assert len(keys) == 6
    assert identity_of(config, one).data == f"{parts[0].uri},{parts[1].uri}"


def test_pixels_of_all_images_alike(parts: list[Dataset]) -> None:
    """As if the statistics had been taken of all of them at once."""
    pixels = Mixture([parts[0], parts[2]]).pixels
    assert pixels is not None
    counts = [len(part.split("train")) for part in (parts[0], parts[2])]
    rng = np.random.default_rng(0)
    samples = []
    for part, count in zip((parts[0], parts[2]), counts, strict=True):
        assert part.pixels is not None
        noise = rng.normal(size=1000)
        noise = (noise - noise.mean()) / noise.std()
        samples.append(np.tile(part.pixels.mean[0] + part.pixels.std[0] * noise, count))
    together = np.concatenate(samples)
    assert pixels.mean == pytest.approx([together.mean()] * 3, abs=1e-4)
    assert pixels.std == pytest.approx([together.std()] * 3, abs=1e-4)


def test_formats_are_those_of_every_part(parts: list[Dataset]) -> None:
    mixture = Mixture(parts[:2])
    assert mixture.formats == ["JPEG"]
    with pytest.raises(DataError, match=r"a/manifest.json was ingested with images of format JPEG"):
        mixture.require_formats(["PNG"])


def test_a_limited_validation_has_some_of_each(parts: list[Dataset]) -> None:
    mixture, alone = Mixture(parts), World(0, 1, torch.device("cpu"))
    config = load_config("mae", "demo", overrides=[*TINY, "trainer.val_samples=6"])
    keys = eval_loader(config, mixture, "val", alone).split.keys.tolist()
    assert len(keys) == len(set(keys)) == 6
    for part in parts:
        assert set(keys) & set(part.split("val").keys.tolist())
    first = eval_loader(config, parts[2], "val", alone).split.keys.tolist()
    assert first == parts[2].split("val").keys.tolist()[:6]


def test_the_same_images_twice_are_refused(parts: list[Dataset]) -> None:
    with pytest.raises(UserError, match="hold the same dataset; give it once"):
        open_data(joined([parts[0].uri, parts[1].uri, parts[0].uri]))


@pytest.fixture(scope="module")
def run(parts: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> str:
    to = tmp_path_factory.mktemp("runs")
    data = [word for part in parts for word in ("--data", part.uri)]
    given = ["pretrain", *data, "--to", str(to), "--recipe", "demo", "--tag", "t", *SETTINGS]
    assert main(given) == 0
    return str(to / "t_mae")


def test_a_run_on_several_from_the_shell(
    run: str, parts: list[Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    record = Run.open(run).record
    mixture = Mixture(parts)
    assert (record.data.uri, record.data.digest) == (mixture.uri, mixture.digest)
    assert mixture.pixels is not None
    assert record.config["data"]["augment"]["mean"] == mixture.pixels.mean
    assert {"val/knn_top1", "val/rankme"} <= set(record.metrics)
    to = str(Path(run).parent)
    same = ["pretrain", "--to", to, "--recipe", "demo", "--tag", "t", "--resume", "auto", *SETTINGS]
    # By its one address as well, as a job or the report gives it.
    assert main([*same, "--data", record.data.uri]) == 0
    assert "unchanged, reused" in capsys.readouterr().err
    assert main([*same, "--data", joined([part.uri for part in parts[::-1]])]) == 2
    assert "exists with another dataset" in capsys.readouterr().err


def test_it_is_evaluated_on_several(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = Run.open(run).record.data.uri
    assert main(["evaluate", "--run", run, "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"]["test"] == 6 + 9 + 12
    assert found["rank"]["images"] == 27
    assert found["knn"]["queries"] == 12


@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_what_uses_labels_takes_one(
    verb: str, run: str, parts: list[Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", parts[0].uri, "--data", parts[1].uri]
    assert main([verb, "--run", run, *data, "--to", str(tmp_path)]) == 2
    line = f"percmae: error: {verb} takes one dataset, and --data names 2; give one\n"
    assert capsys.readouterr().err == line


def test_a_job_is_given_all_of_them() -> None:
    named = ["--data", "s3://bkt//x/manifest.json", "--data=s3://bkt/y/manifest.json"]
    work = work_of(["pretrain", *named, "--to", "s3://bkt/runs"])
    place = work.arguments.index("--data")
    assert work.arguments[place + 1] == "s3://bkt/x/manifest.json,s3://bkt/y/manifest.json"
    with pytest.raises(UserError, match=r"--data s3://bkt/x\.json,y\.json: a pod does not see"):
        work_of(
            ["pretrain", "--data", "s3://bkt/x.json", "--data", "y.json", "--to", "s3://bkt/runs"]
        )


def test_a_run_goes_on_with_what_its_datasets_were(
    tmp_path: Path, parts: list[Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(60):
        pattern(number % 5, number).save(source / f"{number}.png")
    grown = str(tmp_path / "grown")
    first = ingest(images=str(source), to=grown, workers=1).dataset
    words = ["pretrain", "--to", str(tmp_path), "--recipe", "demo", "--tag", "t", *SETTINGS]
    data = ["--data", parts[0].uri, "--data", first.uri, "--resume", "auto"]
    assert main([*words, *data]) == 0
    before = Run.open(str(tmp_path / "t_mae")).record
    assert before.data.uri == f"{parts[0].uri},{first.pinned}"
    for number in range(60, 80):
        pattern(number % 5, number).save(source / f"{number}.png")
    assert ingest(images=str(source), to=grown, workers=1).dataset.digest != first.digest
    capsys.readouterr()
    assert main([*words, *data]) == 0
    assert "its dataset has grown since it began; it goes on with" in capsys.readouterr().err
    assert Run.open(str(tmp_path / "t_mae")).record == before
    # A mixture that it never was is another dataset.
    assert main([*words, "--data", parts[1].uri, *data[2:]]) == 2
    assert "exists with another dataset" in capsys.readouterr().err


def test_parts_in_a_store_and_on_a_disk(parts: list[Dataset], tmp_store: StorePath) -> None:
    """Shards of one split may lie in different places."""
    stored = write_dataset(tmp_store.uri, [0, 1] * 10, [0, 1], ["cat", "owl"], first=5000)
    images, labels = loaded(Mixture([stored, parts[0]]).split("train"))
    assert len(images) == len(stored.split("train")) + len(parts[0].split("train"))
    # The dogs come third here.
    assert set(labels) == {0, 1, 2}
    assert labels[-1] == 2
