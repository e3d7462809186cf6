"""The page of a whole store."""

from __future__ import annotations

from urllib.parse import quote

from percmae.report.page import template
from percmae.report.stats import Json


def render_index(document: Json) -> str:
    """HTML text of what :func:`percmae.stages.index.index` has found."""
    return str(template("index.html.j2").render(i=document, quote=quote))
