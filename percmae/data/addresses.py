"""One text for the address of one dataset or of several. (A file of its own: the command line only
passes it on.)

The address of several is those of their manifests with a comma between them, so it travels wherever
the address of one does: through commands, jobs, artifacts and a run's record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# A comma may stand in the address of a manifest, but hardly behind the ending of one.
_BETWEEN = re.compile(r"(?<=\.json),")


def addresses(data: str) -> list[str]:
    """The manifests that an address names."""
    return _BETWEEN.split(data)


def joined(manifests: Sequence[str]) -> str:
    """The one address of several manifests; :func:`addresses` takes it apart again."""
    return ",".join(manifests)
