"""One class for files, wherever they are: local paths and ``s3://bucket/key``, on minio-py.

``StorePath`` is all that the rest of the project uses. Inside: ``path`` (the class), ``local`` and
``s3`` (the two backends, same methods), ``stream`` (reading and writing large objects in pieces),
``transport`` (HTTP with retries), ``outage`` (a store that is away for longer), ``settings`` (where
the store is), ``keys`` and ``roles`` (who we are), ``proxy`` (what leads there) and ``explain``
(what went wrong).

Importing this stays cheap: minio and urllib3 are loaded at the first S3 request, torch never.
"""

from percmae.storage.base import Stat
from percmae.storage.path import Entry, StorePath, local_path
from percmae.storage.settings import StoreSettings

__all__ = ["Entry", "Stat", "StorePath", "StoreSettings", "local_path"]
