"""The report a person looks at: what a set of runs learned, as a web page and as JSON."""

from __future__ import annotations

from typing import Any

from percmae.report.summary import summary_table

__all__ = ["FIGURES", "PAGE", "report", "summary_table"]

FIGURES, PAGE = "report.json", "report.html"


def report(runs: list[str], to: str) -> dict[str, Any]:
    """Write ``<to>/report.html`` and ``<to>/report.json`` about runs of one variant.

    runs: addresses of run folders (paths or s3:// URIs) in any order: pretraining, probes, their
    untrained controls and fine-tuning, one seed or several. to: folder or s3:// prefix. The page
    is one self-contained file; report.json (format ``percmae-report/1``) has
    every figure in it. Returns the content of report.json.

    Raises DataError for a folder that is no run or a damaged file, UserError for runs that do not
    belong in one report, StoreError when the store cannot be reached.
    """
    from percmae.report.figures import collect
    from percmae.report.page import render
    from percmae.report.read import read_runs
    from percmae.storage import StorePath

    folder = StorePath(to)
    found = read_runs(runs)
    figures = collect(found)
    html, data = folder / PAGE, folder / FIGURES
    figures["files"] = {"html": html.uri, "json": data.uri}
    page = render(figures, found)
    folder.prepare()
    # Figures first: a page that is there has its figures beside it.
    data.write_json(figures)
    html.write_text(page)
    return figures
