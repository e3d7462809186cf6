"""Small ILSVRC archives, whole or faulty on purpose, for the tests of this folder."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from stored_samples import interrupt_after as interrupt_after
from stored_samples import tar_bytes

WNIDS = ("n00000003", "n00000001", "n00000002")  # in the order of their ILSVRC2012_ID
TRUTH = (3, 1, 2, 1, 3, 2)  # ILSVRC2012_ID of the validation images


@dataclass(frozen=True)
class Archives:
    train: Path
    val: Path
    devkit: Path

    def uris(self) -> dict[str, str]:
        """As ``ingest`` takes them."""
        return {role: str(path) for role, path in vars(self).items()}


def picture(seed: int, format: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    """A file with a random but smooth RGB picture in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def class_tars(per_class: int = 5) -> dict[str, bytes]:
    return {
        f"{wnid}.tar": tar_bytes(
            {f"{wnid}_{n}.JPEG": picture(1000 * k + n) for n in range(per_class)}
        )
        for k, wnid in enumerate(WNIDS)
    }


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{n:08d}.JPEG": picture(n) for n in range(1, len(TRUTH) + 1)}


def devkit_bytes(truth: Iterable[object] = TRUTH, meta: bytes | None = None) -> bytes:
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    rows = [(n, w, f"thing {w}, synonym", "", 0, [], 0, 5) for n, w in enumerate(WNIDS, 1)]
    rows.append((4, "n00000009", "all things", "", 3, [1, 2, 3], 1, 0))
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in fields.split()])
    for number, row in enumerate(rows):
        table[number, 0] = row
    if meta is None:
        buffer = io.BytesIO()
        savemat(buffer, {"synsets": table})
        # scipy writes the time of day into the text at the start; equal archives need none.
        meta = b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]
    root = "ILSVRC2012_devkit_t12/data"
    lines = "".join(f"{label}\n" for label in truth)
    plain = tar_bytes(
        {
            f"{root}/meta.mat": meta,
            f"{root}/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
        }
    )
    return gzip.compress(plain, mtime=0)


def build(folder: Path, **parts: bytes) -> Archives:
    """The three archives in ``folder``; ``train``, ``val``, ``devkit`` replace their content."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = Archives(
        folder / "ILSVRC2012_img_train.tar",
        folder / "ILSVRC2012_img_val.tar",
        folder / "ILSVRC2012_devkit_t12.tar.gz",
    )
    archives.train.write_bytes(parts.get("train") or tar_bytes(class_tars()))
    archives.val.write_bytes(parts.get("val") or tar_bytes(val_files()))
    archives.devkit.write_bytes(parts.get("devkit") or devkit_bytes())
    return archives
