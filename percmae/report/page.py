"""Pages as one HTML file each: no requests, pictures and charts inside, one small script.

The script (templates/page.js) adds what can be turned and sorted; without it a page says the same.
Its digest is in the page's content policy, so that nothing else can run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources
from typing import Any

from percmae.report.curves import charts, efficiency_chart, embedding_chart
from percmae.report.kinds import colour, name
from percmae.report.read import ReportedRun, StoredPicture
from percmae.report.rerun import rerun_commands
from percmae.report.stats import Json, points, spread
from percmae.runs.evaluation import (
    EVALUATION_PICTURE,
    GRID_COLUMNS,
    GRID_GAP,
    ReconstructionEvaluation,
)

MANY = 20
"""Up to this many classes the page shows the whole confusion matrix and every class."""
CLASS_ROWS = 10
"""With more classes: this many of the best and of the worst."""
SCALED_UP = 480
"""Width in pixels that a grid of small images is enlarged to, by a whole factor."""


def render(report: Json, runs: list[ReportedRun]) -> str:
    """HTML text of a report.

    report: the figures (:func:`percmae.report.figures.collect`); runs: the run folders they came
    from. Every name, address and setting is escaped.
    """
    return template("report.html.j2").render(
        r=report,
        kinds={run.kind: name(run.record.kind) for run in runs},
        colours=_colours(runs),
        efficiency=_drawn(efficiency_chart(report)),
        embedding=_drawn(embedding_chart(runs)),
        charts=[_drawn(chart) for chart in charts(report, runs)],
        pictures=[_picture(run.seed, run.picture) for run in runs if run.picture],
        galleries=[_picture(run.seed, run.neighbours) for run in runs if run.neighbours],
        confusions=[_confusion(report, kind) for kind in report["confusion"]],
        classes=_class_table(report),
        configs=_configs(runs),
        commands=rerun_commands(runs),
    )


def render_reconstructions(
    evaluation: ReconstructionEvaluation, grid: StoredPicture, neighbours: StoredPicture | None
) -> str:
    """HTML text of what one pretraining run's evaluation has made of its fixed images."""
    return template("reconstructions.html.j2").render(
        evaluation=evaluation,
        shown=evaluation.reconstruction,
        picture=_picture(evaluation.seed, grid),
        gallery=_picture(evaluation.seed, neighbours) if neighbours else None,
    )


def template(name: str) -> Any:
    """A template of the package, with the filters of all pages; it escapes what it is given."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("percmae", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=points,
        spread=spread,
        count=lambda n: "–" if n is None else f"{n:,}",
        percent=lambda share: "–" if share is None else f"{100 * share:.1f}",
        duration=duration,
        amount=lambda value: "–" if value is None else f"{value:,.2f}",
        short=short_digest,
        unbroken=lambda text: text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0"),
    )
    script = resources.files("percmae").joinpath("templates", "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(script=Markup(script), script_digest=digest)
    return environment.get_template(name)


def duration(seconds: float | None) -> str:
    """``45 s``, ``3 min 07 s``, ``2 h 05 min``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short_digest(digest: str) -> str:
    """The first 12 hexadecimal digits, enough to tell apart by eye."""
    return digest.removeprefix("sha256:")[:12]


def _drawn(chart: Json | None) -> Json | None:
    """A chart with its own SVG (its texts are escaped by the XML writer) as safe HTML."""
    from markupsafe import Markup

    return None if chart is None else {**chart, "svg": Markup(chart["svg"])}


def _colours(runs: Iterable[ReportedRun]) -> dict[str, str]:
    """The class of each row of the table."""
    classifiers = (run for run in runs if run.stage != "pretrain")
    return {run.kind: colour(run.record.kind) for run in classifiers} | {
        "knn": "blue",
        "knn_untrained": "grey",
    }


def png_address(data: bytes) -> str:
    """A PNG as an address that has all of it in it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _picture(seed: int, picture: StoredPicture) -> Json:
    """A reconstruction grid as a data: URI; small ones are enlarged by a whole factor, crisp."""
    factor = max(1, SCALED_UP // picture.width)
    return {
        "seed": seed,
        "uri": picture.uri,
        "source": png_address(picture.data),
        "width": picture.width * factor,
        "height": picture.height * factor,
        "columns": len(GRID_COLUMNS),
        "gap": GRID_GAP,
        "crisp": factor > 1,
        "evaluated": picture.uri.endswith(f"/{EVALUATION_PICTURE}"),
    }


def _confusion(report: Json, kind: str) -> Json:
    """The matrix with a shade for each cell, or for many classes the top confusions only.

    Shades are 0..1: on the diagonal the share of the class that was right; elsewhere the share of
    the class mistaken so, over the largest such share.
    """
    confusion, classes = report["confusion"][kind], report["classes"][kind]
    view: Json = {"kind": kind, "label": _label(report, kind), **confusion, "matrix": None}
    if confusion["counts"] is None or len(classes) > MANY:
        return view
    shares = [[n / max(sum(row), 1) for n in row] for row in confusion["counts"]]
    size = range(len(classes))
    worst = max((shares[i][j] for i in size for j in size if i != j), default=0.0) or 1.0
    view["matrix"] = [
        [
            {
                "count": confusion["counts"][i][j],
                "right": i == j,
                "shade": shares[i][j] if i == j else shares[i][j] / worst,
            }
            for j in size
        ]
        for i in size
    ]
    view["names"] = [item["name"] for item in classes]
    return view


def _label(report: Json, kind: str) -> str:
    return str(next(row["label"] for row in report["table"] if row["row"] == kind))


def _class_table(report: Json) -> Json | None:
    """Per-class top-1 of the classifiers that have seen all labels.

    With many classes it is the ends of the list only.
    """
    few = {row["row"] for row in report["table"] if row.get("label_fraction", 1) < 1}
    tables = {kind: table for kind, table in report["classes"].items() if kind not in few}
    if not tables:
        return None
    lead = next(kind for kind in ("finetune", "probe", *tables) if kind in tables)
    size = len(tables[lead])
    order = list(range(size))
    cut = size > MANY
    if cut:
        order.sort(key=lambda i: tables[lead][i]["top1"]["mean"] or 0.0, reverse=True)
        order = order[:CLASS_ROWS] + order[-CLASS_ROWS:]
    rows = [
        {
            **{key: tables[lead][i][key] for key in ("wnid", "name", "samples")},
            "cells": [{"kind": kind, "top1": tables[kind][i]["top1"]} for kind in tables],
        }
        for i in order
    ]
    labels = {kind: _label(report, kind) for kind in tables}
    return {"rows": rows, "labels": labels, "cut": cut, "lead": labels[lead], "size": size}


def _configs(runs: list[ReportedRun]) -> list[Json]:
    """Effective configurations: one a kind of run, more where runs differ by more than seed."""
    found: dict[tuple[str, str], Json] = {}
    for run in runs:
        text = run.config or ""
        lines = [line for line in text.splitlines() if not line.startswith("seed:")]
        key = (run.kind, "\n".join(lines))
        if key in found:
            found[key]["seeds"].append(run.seed)
        else:
            found[key] = {"kind": run.kind, "seeds": [run.seed], "yaml": run.config}
    return list(found.values())
