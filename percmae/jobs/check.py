"""What the API server or the training operator would refuse, told before they are asked."""

from __future__ import annotations

import re
from typing import Any

from percmae.errors import ConfigError

_LABEL_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def check_object(made: dict[str, Any]) -> None:
    """Raises ConfigError naming the field for the first thing that would be refused."""
    name = made["metadata"]["name"]
    if len(name) > 63 or not _LABEL_NAME.match(name):
        raise ConfigError(
            f"job name {name!r}: lower-case letters, digits and '-', a letter first, at most 63"
        )
