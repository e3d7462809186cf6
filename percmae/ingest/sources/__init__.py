"""Sources of images, listed: folders, tables, archives, WebDataset's shards, ILSVRC's archives.

``opening`` finds out what a URI is. ``folder``, ``table``, ``archives`` (with ``tar_members`` and
``zip_members``) and ``ilsvrc`` list it; ``tree`` reads splits and classes off folders, ``keys``
names the images, ``files`` and ``listed`` hold them as columns.
"""

from percmae.ingest.sources.ilsvrc import open_ilsvrc
from percmae.ingest.sources.opening import open_source

__all__ = ["open_ilsvrc", "open_source"]
