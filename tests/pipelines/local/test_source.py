"""Which images a run takes where none were chosen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from small_pipeline import write_images

from percmae.data.sample_sources import SOURCES, Source, load_source
from percmae.errors import DataError, UserError
from percmae.stages.steps import dataset_name
from pipelines.local.console import Console
from pipelines.local.options import RunOptions
from pipelines.local.run import find_data, settled


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCMAE_HOME", str(tmp_path / "home"))


def test_the_last_resort_is_said_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(scratch: Path) -> Source:
        raise DataError("no way to it")

    monkeypatch.setitem(SOURCES, "fashion-mnist", none)
    said = io.StringIO()
    options = settled(RunOptions(), Console(said))
    assert "FASHION-MNIST COULD NOT BE HAD" in said.getvalue()
    assert "MNIST AS THE LAST RESORT" in said.getvalue()
    assert "no way to it" in said.getvalue()
    assert (options.source, options.dataset) == ("mnist", "mnist-last-resort")
    assert settled(options, Console(said)) == options
    assert settled(RunOptions(dataset="a"), Console(said)).dataset == "a-last-resort"


def test_what_was_asked_for_is_never_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(scratch: Path) -> Source:
        raise DataError("no way to it")

    monkeypatch.setitem(SOURCES, "fashion-mnist", none)
    said = io.StringIO()
    for chosen in (RunOptions(source="fashion-mnist"), RunOptions(archives="archives")):
        assert settled(chosen, Console(said)) == chosen
    with pytest.raises(DataError, match="no way to it"):
        find_data(RunOptions(source="fashion-mnist"))
    assert said.getvalue() == ""


def test_the_default_where_it_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    images = load_source(str(write_images(tmp_path / "images", "dark", "light")), tmp_path)
    monkeypatch.setitem(SOURCES, "fashion-mnist", lambda scratch: images)
    said = io.StringIO()
    options = settled(RunOptions(), Console(said))
    assert (options.source, options.dataset, said.getvalue()) == ("fashion-mnist", None, "")
    name, data = find_data(options)
    assert name == "fashion-mnist"
    assert list(data) == ["archive_train", "archive_val", "archive_devkit"]
    assert all(Path(archive).exists() for archive in data.values())


def test_images_of_ones_own() -> None:
    name, data = find_data(RunOptions(images="s3://bucket/my photos.2", labels="none"))
    assert name == dataset_name("s3://bucket/my photos.2")
    assert data == {"images": "s3://bucket/my photos.2", "labels": "none"}
    assert find_data(RunOptions(images="s3://bucket/a", dataset="b"))[0] == "b"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RunOptions(images="a", archives="b"), "--images and --archives: the images come from one"),
        (RunOptions(labels="none"), "--labels goes with --images"),
    ],
)
def test_what_does_not_go_together(options: RunOptions, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.check("mae")
