"""The files of a version: their names, and reading them where they lie or were pulled to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from percmae.config import Augment
from percmae.config.schema import Data, Interpolation
from percmae.errors import DataError, UserError
from percmae.registry.model import LATEST, MODEL, Version, read_file, read_model, reference
from percmae.runs.evaluation import EVALUATION
from percmae.runs.files import DatasetIdentity, Part, parse
from percmae.storage import StorePath

ENCODER, CLASSIFIER = "encoder", "classifier"
WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"
PREPROCESS, LABELS, CARD = "preprocess.json", "labels.json", "README.md"
# Any of timm's Vision Transformers: its sizes are arguments beside it.
ARCHITECTURE = "vit_base_patch16_224"
_AGAIN = "pull the model again"


class Preprocess(Part):
    """``preprocess.json``: what is done to an image before the network sees it, in this order."""

    colour: Literal["RGB"] = "RGB"
    resize_shorter_side: int
    interpolation: Interpolation
    antialias: Literal[True] = True
    centre_crop: int
    scale: float = 1 / 255
    mean: list[float]
    std: list[float]
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["float32"] = "float32"

    @classmethod
    def of(cls, data: Data) -> Preprocess:
        """What the evaluation transform of these settings does."""
        mean, std = data.augment.normalisation
        return cls(
            resize_shorter_side=round(data.image_size / data.augment.eval_crop),
            interpolation=data.augment.interpolation,
            centre_crop=data.image_size,
            mean=mean,
            std=std,
        )

    @property
    def data(self) -> Data:
        """Settings whose evaluation transform does this. Raises DataError where there are none."""
        try:
            augment = Augment(
                interpolation=self.interpolation,
                eval_crop=self.centre_crop / self.resize_shorter_side,
                mean=self.mean,
                std=self.std,
            )
            return Data(image_size=self.centre_crop, augment=augment)
        except (ValueError, ZeroDivisionError):
            raise DataError(
                f"{PREPROCESS}: no image can be resized to {self.resize_shorter_side} pixels and "
                f"cut to {self.centre_crop}, of {len(self.mean)} and {len(self.std)} channels; "
                f"{_AGAIN}"
            ) from None


class Label(Part):
    """``labels.json`` has one for each output of the classifier."""

    id: str
    name: str


@dataclass(frozen=True)
class Package:
    """The files of a version.

    where: what messages call it; folder: of the files; names: theirs; version, model: which it is,
    and the model's folder; None for a pulled folder, which does not say.
    """

    where: str
    folder: StorePath
    names: tuple[str, ...]
    version: Version | None = None
    model: StorePath | None = None

    def read(self, name: str) -> bytes:
        """A file's content, checked against its SHA-256 where it is known.

        Raises DataError for one that is gone, or is not what it was.
        """
        if name not in self.names:
            raise DataError(f"model {self.where} has no file {name}")
        if self.version is None or self.model is None:
            return (self.folder / name).read_bytes()
        return read_file(self.model, self.version, name)

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier."""
        return f"{CLASSIFIER}/{TIMM_CONFIG}" in self.names

    @property
    def preprocess(self) -> Preprocess:
        where = (self.folder / PREPROCESS).uri
        return parse(Preprocess, self.read(PREPROCESS), where, _AGAIN)

    @property
    def labels(self) -> list[Label]:
        """What each output of the classifier stands for."""
        where = (self.folder / LABELS).uri
        text = b'{"labels":' + self.read(LABELS) + b"}"
        return parse(_Labels, text, where, _AGAIN).labels

    @property
    def evaluated_on(self) -> str:
        """The address of the dataset whose test images it was judged by."""
        where = (self.folder / EVALUATION).uri
        return parse(_Evaluated, self.read(EVALUATION), where, _AGAIN).data.uri


class _Labels(Part):
    labels: list[Label]


class _Evaluated(Part):
    data: DatasetIdentity


def require_empty(target: StorePath, force: bool) -> None:
    """Raise UserError for a folder of ``--to`` that has files in it, unless that is forced."""
    if not force and next(target.iter(), None) is not None:
        raise UserError(f"--to {target} is not empty; choose another folder, or add --force")


def open_package(model: str) -> Package:
    """A version's files.

    model: ``<folder>/<name>[@<alias or version>]`` (without ``@`` the newest), or a folder that it
    was pulled to. Raises UserError or DataError where there is no such model or version.
    """
    folder = StorePath(model)
    if (folder / PREPROCESS).exists():
        return Package(folder.uri, folder, tuple(entry.name for entry in folder.iter()))
    asked = reference(model)
    if not (asked.path / MODEL).exists():
        raise UserError(
            f"--model {model}: there is neither a model (a folder with {MODEL}; `percmae models "
            f"add` makes one of a run) nor what `percmae models pull` writes (with {PREPROCESS})"
        )
    version = read_model(asked.path).named(asked.which or LATEST)
    where, folder = str(asked._replace(which=str(version.version))), asked.path / version.folder
    return Package(where, folder, tuple(version.files), version, asked.path)
