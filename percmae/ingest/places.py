"""The bytes of one image, from wherever its place says."""

from __future__ import annotations

import zlib

from percmae.data.tars import LARGEST_IMAGE
from percmae.errors import DataError
from percmae.ingest.catalogue import Place

_RAW_DEFLATE = -zlib.MAX_WBITS  # as in a zip: without a header and a checksum of its own


def read_place(place: Place, raw: bytes | None = None) -> bytes:
    """The image's bytes, by one ranged read; a deflated member of a zip is inflated.

    raw: the bytes there, where somebody has read them already.

    Raises DataError where there are fewer bytes than the place says, for deflated data that is
    damaged, and for more than LARGEST_IMAGE bytes, of which no more than that is ever held;
    StoreError as the store has it.
    """
    asked = LARGEST_IMAGE + 1 if place.length is None else place.length
    if place.length is not None and place.length > LARGEST_IMAGE:
        raise _too_large(place)
    data = place.path.read_bytes(place.offset, asked) if raw is None else raw
    if place.length is None and len(data) == asked:
        raise _too_large(place)
    if place.length is not None and len(data) != place.length:
        raise DataError(
            f"{place.path} has {len(data):,} of the {place.length:,} bytes that an image takes "
            f"from byte {place.offset:,} on: it was cut short or replaced since it was listed; "
            "give the same command again"
        )
    return _inflated(data, place) if place.deflated else data


def _inflated(data: bytes, place: Place) -> bytes:
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        image = stream.decompress(data, LARGEST_IMAGE + 1)
    except zlib.error as error:
        raise DataError(
            f"{place.path}: the member at byte {place.offset:,} is damaged: {error}"
        ) from None
    if len(image) > LARGEST_IMAGE:
        raise _too_large(place)
    if not stream.eof:
        raise DataError(
            f"{place.path}: the member at byte {place.offset:,} is damaged: its end is missing"
        )
    return image


def _too_large(place: Place) -> DataError:
    where = f", from byte {place.offset:,} on," if place.offset else ""
    return DataError(
        f"{place.path}{where} has more than {LARGEST_IMAGE >> 20} MiB, which no image has; "
        "take it out of the source"
    )
