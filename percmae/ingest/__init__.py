"""Ingest: anybody's images to a dataset in the store.

A source is listed without reading its images (:class:`percmae.ingest.catalogue.Catalogue`); shards
are planned from the list alone, and built side by side. ``ingest`` is imported on first use, for
whoever needs the contract alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from percmae.ingest.make import IngestResult as IngestResult
    from percmae.ingest.verb import ingest as ingest

__all__ = ["IngestResult", "ingest"]


def __getattr__(name: str) -> Any:
    if name == "ingest":
        from percmae.ingest.verb import ingest

        return ingest
    if name == "IngestResult":
        from percmae.ingest.make import IngestResult

        return IngestResult
    raise AttributeError(f"module 'percmae.ingest' has no attribute {name!r}")
