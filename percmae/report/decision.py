"""A decision between champion and challenger as a page: why, and on which images they differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from percmae.report.page import template


def render_decision(decision: dict[str, Any], pictures: Sequence[bytes]) -> str:
    """HTML text of a decision, in one file.

    decision: the content of its JSON file (percmae.registry.judging.Decision); pictures: a PNG of
    each image in ``shown``.
    """
    sources = [
        "data:image/png;base64," + base64.b64encode(picture).decode() for picture in pictures
    ]
    return template("decision.html.j2").render(
        d=decision, shown=list(zip(decision["shown"], sources, strict=True))
    )
