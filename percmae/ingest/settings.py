"""How images are ingested: what a dataset's content depends upon beside the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from percmae.config import FORMATS
from percmae.data.decode import check_formats
from percmae.errors import UserError

SHARD_BYTES = 128 * 2**20
QUALITY = 90
"""Of a JPEG that is made smaller, where no other is asked for (Pillow's 0 to 95)."""

_SIZE = re.compile(r"(\d+)\s*(|[KMG])(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_SMALLEST_SIDE, _LARGEST_SIDE = 8, 4096


@dataclass(frozen=True)
class Settings:
    """shard_bytes: a shard is closed once it holds so many. formats: of images that
    are opened; others count as damaged. short_side: images whose shorter side has more pixels are
    stored as JPEGs of this ``quality`` whose shorter side has so many; None stores all as they
    are."""

    shard_bytes: int = SHARD_BYTES
    formats: tuple[str, ...] = FORMATS
    short_side: int | None = None
    quality: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As they stand in the manifest."""
        values: dict[str, Any] = {"shard_bytes": self.shard_bytes, "formats": list(self.formats)}
        if self.short_side is not None:
            values |= {"short_side": self.short_side, "quality": self.quality}
        return values


def settings_of(
    shard_size: int | str = SHARD_BYTES,
    formats: Sequence[str] = FORMATS,
    short_side: int | None = None,
    quality: int | None = None,
) -> Settings:
    """The settings, checked.

    shard_size: bytes, or such as ``128M``. Raises UserError for what cannot be.
    """
    if quality is not None and short_side is None:
        raise UserError("--quality is of images that --short-side makes smaller: give both")
    if short_side is not None:
        quality = QUALITY if quality is None else quality
        if not _SMALLEST_SIDE <= short_side <= _LARGEST_SIDE:
            raise UserError(
                f"--short-side {short_side}: give {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels"
            )
        if not 1 <= quality <= 95:
            raise UserError(f"--quality {quality}: give 1 to 95")
    return Settings(
        size_of(shard_size, "--shard-size"), check_formats(formats), short_side, quality
    )


def size_of(size: int | str, option: str, least: int = 1) -> int:
    """Bytes. Raises UserError, naming the option, for what is no size or less than ``least``."""
    found = _SIZE.fullmatch(str(size).strip())
    count = int(found[1]) * _UNITS[found[2].upper()] if found else -1
    if count < least:
        raise UserError(f"{option} {size}: give bytes, or a number with K, M or G such as 128M")
    return count
