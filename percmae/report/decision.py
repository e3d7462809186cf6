"""A decision between champion and challenger as a page: why, and on which images they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from percmae.report.page import png_address, template


def render_decision(decision: dict[str, Any], pictures: Sequence[bytes]) -> str:
    """HTML text of a decision, in one file.

    decision: the content of its JSON file (percmae.registry.judging.Decision); pictures: a PNG of
    each image in ``shown``.
    """
    shown = list(zip(decision["shown"], map(png_address, pictures), strict=True))
    return template("decision.html.j2").render(d=decision, shown=shown)
