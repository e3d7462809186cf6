"""A message to a webhook: off unless the environment names one, and its failure is only said."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from percmae.errors import one_line
from percmae.progress import note, warn

WEBHOOK = "PERCMAE_WEBHOOK"
"""The variable with its address, which is a secret as a rule: it is never printed."""
_SECONDS = 10


def notify(text: str, facts: Mapping[str, Any]) -> None:
    """POST ``{"text": …, **facts}`` as JSON to the webhook; ``text`` is what Slack shows."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    host = "its host"
    try:
        parts = urlsplit(address)
        host = parts.hostname or host
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http:// or https:// address")
        request = urllib.request.Request(
            address,
            data=json.dumps({"text": text, **facts}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_SECONDS):
            note(f"{WEBHOOK}: {host} has been told")
    # Whatever a hook answers, and however it does: what was decided stands.
    except (OSError, ValueError, urllib.error.URLError) as error:
        said = one_line(error).replace(address, "…")
        warn(f"{WEBHOOK}: {host} could not be told ({said}); nothing else depends on it")
