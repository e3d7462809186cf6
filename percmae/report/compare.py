"""Variants side by side: one table and one figure of what each learned on the same budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from percmae.errors import DataError, UserError, one_line
from percmae.report.compare_chart import draw
from percmae.report.compare_pictures import draw_learning, learning, side_by_side
from percmae.report.compare_text import markdown
from percmae.report.figures import collect
from percmae.report.read import ReportedRun, check_same_test, read_runs
from percmae.report.stats import Json, stats
from percmae.storage import StorePath

FORMAT = "percmae-compare/1"
FIGURES, MARKDOWN = "compare.json", "compare.md"
PICTURES = {
    "picture": "compare.png",
    "learning": "learning.png",
    "reconstructions": "reconstructions.png",
}


@dataclass(frozen=True)
class Compared:
    """One variant: the addresses of its runs, of any stage and seed, or why there are none."""

    variant: str
    runs: list[str] = field(default_factory=list)
    error: str | None = None


def compare(entries: list[Compared], to: str) -> Json:
    """Write ``<to>/compare.json``, ``compare.md`` and pictures; return the first's content.

    The pictures: ``compare.png``, the table; ``learning.png``, k-NN or effective rank over images
    seen and over time; ``reconstructions.png``, what each variant makes of the same images.
    Rows stand in the order of ``entries``, or where no image has a label by the effective rank of
    the features, the highest first; each figure is a ``stats`` object as in report.json
    (:func:`percmae.report.figures.collect`), shares in 0..1. A picture that nothing
    is there for is not made. Raises UserError for entries that do not belong in one table,
    DataError for a folder that is no run or a damaged file, StoreError when the store cannot be
    reached.
    """
    if not entries:
        raise UserError("compare needs at least one variant")
    found = [(entry, _read(entry)) for entry in entries]
    runs = [run for _, group in found for run in group]
    check_same_test(runs)
    folder = StorePath(to)
    document = _document(found)
    pictures = _pictures(document, found)
    names = {"json": FIGURES, **{key: PICTURES[key] for key in pictures}, "markdown": MARKDOWN}
    document["files"] = {key: (folder / name).uri for key, name in names.items()}
    folder.prepare()
    for key, name in PICTURES.items():
        if key in pictures:
            (folder / name).write_bytes(pictures[key])
        elif (folder / name).exists():
            (folder / name).delete()  # of an earlier comparison, which this one replaces
    (folder / FIGURES).write_json(document)
    (folder / MARKDOWN).write_text(markdown(document))
    return document


def _pictures(document: Json, found: list[tuple[Compared, list[ReportedRun]]]) -> dict[str, bytes]:
    """Those of PICTURES that there is something for; of reconstructions, the first seed's."""
    first = (
        (entry.variant, next((run for run in runs if run.kind == "pretrain"), None))
        for entry, runs in found
    )
    grids = [(name, run.picture) for name, run in first if run and run.told and run.picture]
    made = {
        "picture": draw(document)
        if any(row["error"] is None for row in document["rows"])
        else None,
        "learning": draw_learning(document),
        "reconstructions": side_by_side(grids) if grids else None,
    }
    return {key: data for key, data in made.items() if data is not None}


def _read(entry: Compared) -> list[ReportedRun]:
    if entry.error is not None:
        return []
    runs = read_runs(entry.runs)
    if runs[0].variant != entry.variant:
        raise UserError(f"{runs[0].uri} is of variant {runs[0].variant}, not {entry.variant}")
    if not any(run.kind == "pretrain" for run in runs):
        raise UserError(f"variant {entry.variant} has no pretraining run; give it among its runs")
    return runs


def _document(found: list[tuple[Compared, list[ReportedRun]]]) -> Json:
    rows = [_row(entry, runs) for entry, runs in found]
    budgets = {entry.variant: _budget(runs) for entry, runs in found if runs}
    reports = [collect(runs) for _, runs in found if runs]
    data = next((r["data"] for r in reports if r["data"]["classes"]), None)
    guess = data["random_guess"]["top1"]["mean"] if data else None
    budget, differences = _shared(budgets)
    labelled = not reports or any(report["labelled"] for report in reports)
    if not labelled:
        rows.sort(key=_by_rank)
        data = reports[0]["data"]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "labelled": labelled,
        "random_guess": guess,
        "samples": data["samples"] if data else {},
        "classes": data["classes"] if data else None,
        "budget": budget,
        "differences": differences,
    }


def _row(entry: Compared, runs: list[ReportedRun]) -> Json:
    """One variant's figures; with an error, nothing else."""
    row: Json = {"variant": entry.variant, "error": entry.error}
    if not runs:
        return row
    report = collect(runs)
    top1 = {item["row"]: item["top1"] for item in report["table"]}
    pretrain = [run for run in runs if run.kind == "pretrain"]
    return {
        **row,
        "seeds": report["seeds"],
        **{kind: top1.get(kind, stats([])) for kind in ("probe", "probe_untrained", "finetune")},
        "knn": stats((run.seed, _last(run.curve("val", "knn_top1"))) for run in pretrain),
        "rankme": report["features"]["rankme"],
        "psnr": report["reconstruction"]["psnr"],
        "ssim": report["reconstruction"]["ssim"],
        "distance": report["reconstruction"]["distance"],
        "step_seconds": stats((run.seed, _step_seconds(run)) for run in pretrain),
        "learning": learning(pretrain, report["data"]["samples"].get("train")),
        "steps": stats((run.seed, run.record.step) for run in pretrain),
        "runs": [run.uri for run in runs],
    }


def _by_rank(row: Json) -> float:
    """The highest effective rank first, then what has none."""
    mean = row["rankme"]["mean"] if row["error"] is None else None
    return math.inf if mean is None else -mean


def _last(curve: list[tuple[float, float]]) -> float | None:
    return curve[-1][1] if curve else None


def _step_seconds(run: ReportedRun) -> float | None:
    seconds, steps = run.record.seconds, run.record.step
    return seconds / steps if seconds and steps else None


def _budget(runs: list[ReportedRun]) -> Json:
    """What a variant was given, in words for the table's reader, by the first seed's settings."""
    pretrain = next(run for run in runs if run.kind == "pretrain")
    config = _config(pretrain)
    data, model, optim = config.data, config.model, config.optim
    length = {run.kind: run.record.epochs for run in runs}
    sizes = {"encoder": model.encoder, "decoder": model.decoder}
    return {
        "recipe": config.recipe,
        "seeds": ", ".join(str(run.seed) for run in runs if run.kind == "pretrain"),
        "pretraining epochs": _number(length["pretrain"]),
        "probe epochs": _number(length.get("probe")),
        "fine-tuning epochs": _number(length.get("finetune")),
        "images a step": str(optim.total_batch or data.batch_size * optim.accumulate),
        "image size": f"{data.image_size} px in patches of {model.patch_size} px",
        **{
            name: f"width {size.width}, depth {size.depth}, heads {size.heads}"
            for name, size in sizes.items()
        },
    }


def _config(run: ReportedRun) -> Any:
    from percmae.config import config_from_dict
    from percmae.plain import read_yaml

    try:
        return config_from_dict(read_yaml(run.config or "", "it"))
    except (UserError, AttributeError, TypeError) as error:
        raise DataError(
            f"{run.uri}/config.yaml cannot be read by this percmae "
            f"({one_line(error)}); compare runs of one version"
        ) from None


def _number(value: Any) -> str | None:
    return None if value is None else f"{value:g}"


def _shared(budgets: dict[str, Json]) -> tuple[dict[str, str], list[str]]:
    """What all variants have in common, and in words what they have not."""
    common, differences = {}, []
    for key in dict.fromkeys(key for budget in budgets.values() for key in budget):
        values = {variant: budget[key] for variant, budget in budgets.items()}
        if len(set(values.values())) > 1:
            differences.append(f"{key}: {_listed(values.items())}")
        elif (value := next(iter(values.values()))) is not None:
            common[key] = value
    return common, differences


def _listed(pairs: Iterable[tuple[str, str | None]]) -> str:
    return "; ".join(f"{variant} {value or 'none'}" for variant, value in pairs)
