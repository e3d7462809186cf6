"""The bytes of one image, from where its source has it."""

from __future__ import annotations

from percmae.ingest.catalogue import Place


def read_place(place: Place) -> bytes:
    return place.path.read_bytes(place.offset, place.length)
