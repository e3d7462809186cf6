"""What one split of a dataset holds, as a digest: it stays when the other splits grow."""

from __future__ import annotations

from percmae.data.shards import Dataset, digest_of


def split_digest(dataset: Dataset, name: str) -> str:
    """``sha256:…`` of the images of a stored split, in their order, with the labels they have.

    Two datasets of equal test digests have the same test images. Raises KeyError for a split that
    is not stored.
    """
    return digest_of({"split": [[info.sha256, info.removed] for info in dataset.shards[name]]})
