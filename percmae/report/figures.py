"""From run folders to the figures of a report: tables, means over seeds, counts, identities."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from percmae.config.naming import Kind
from percmae.report.goals import judge_goals
from percmae.report.kinds import KNN, label, ordered
from percmae.report.read import ReportedRun
from percmae.report.stats import Json, stats
from percmae.report.verdict import judge, judge_without_labels
from percmae.runs.evaluation import ClassifierEvaluation
from percmae.runs.record import RunRecord

FORMAT = "percmae-report/1"

MANY_CLASSES = 100
"""Above this many classes report.json lists the most frequent confusions, not every count."""


def collect(runs: list[ReportedRun]) -> Json:
    """The whole of report.json, but for the addresses of the report's own files.

    All shares (top1, top5, ece) are in 0..1, psnr in dB, seconds in s. Figures over seeds are
    objects of :func:`percmae.report.stats.stats`.
    """
    by_kind = {
        str(kind): [run for run in runs if run.kind == str(kind)]
        for kind in ordered(run.record.kind for run in runs)
    }
    pretrained = by_kind.get("pretrain", [])
    judged = {kind: _judged(found) for kind, found in by_kind.items() if kind != "pretrain"}
    judged = {kind: found for kind, found in judged.items() if found}
    data = _data(runs)
    data["last_resort"] = runs[0].record.data.last_resort
    table = _table(data, judged, by_kind)
    features = _features(pretrained)
    unlabelled = not judged and bool(pretrained) and all(_has_no_labels(run) for run in pretrained)
    samples = data["samples"].get("test")
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": _title(pretrained or runs),
        "variant": runs[0].variant,
        "tag": _shared(run.record.tag for run in runs),
        "seeds": sorted({run.seed for run in runs}),
        "data": data,
        "labelled": not unlabelled,
        "verdict": judge_without_labels(features) if unlabelled else judge(table, samples),
        "goals": judge_goals(table),
        "table": table,
        "reconstruction": _reconstruction(pretrained),
        "features": features,
        "classes": {kind: _classes(rows) for kind, rows in judged.items()},
        "confusion": {kind: _confusion(rows) for kind, rows in judged.items()},
        "runs": [_run(run) for kind in by_kind for run in by_kind[kind]],
        "versions": _versions(runs),
        "missing": [
            *([_LAST_RESORT] if data["last_resort"] else []),
            *_missing(by_kind, unlabelled),
        ],
    }


_LAST_RESORT = (
    "MNIST AS THE LAST RESORT: Fashion-MNIST could not be had, so these are figures on 5,000 "
    "handwritten digits, which say little about the method."
)

Judged = list[tuple[int, ClassifierEvaluation]]
"""Seeds and what their classifiers reached on the test images."""


def _judged(runs: list[ReportedRun]) -> Judged:
    return [(run.seed, run.judged) for run in runs if run.judged is not None]


def _table(
    data: Json, judged: dict[str, Judged], by_kind: dict[str, list[ReportedRun]]
) -> list[Json]:
    """Rows from the floors up: a guess, probes and neighbours, then what was fine-tuned."""
    guess: Json = {"row": "random_guess", "label": "Random guess", **data["random_guess"]}
    rows = [_row(by_kind[kind][0].record.kind, found) for kind, found in judged.items()]
    probe = next((i for i, row in enumerate(rows) if row["row"] == "probe"), None)
    tuned = next((i for i, row in enumerate(rows) if row["stage"] == "finetune"), len(rows))
    place = tuned if probe is None else probe
    rows[place:place] = _neighbours(by_kind.get("pretrain", []))
    return [*([guess] if data["random_guess"] else []), *rows]


def _row(kind: Kind, judged: Judged) -> Json:
    keys = ("top1", "top5", "ece", "loss")
    figures = {key: stats((seed, getattr(found, key)) for seed, found in judged) for key in keys}
    about = {"row": str(kind), "label": label(kind), **kind._asdict()}
    return {**about, "seeds": [seed for seed, _ in judged], **figures}


def _neighbours(runs: list[ReportedRun]) -> list[Json]:
    """Rows of the encoder and its control, each with its top-1 alone."""
    figures = [(run.seed, run.told.knn) for run in runs if run.told and run.told.knn]
    if not figures:
        return []
    top1 = {
        "knn_untrained": [(seed, knn.untrained_top1) for seed, knn in figures],
        "knn": [(seed, knn.top1) for seed, knn in figures],
    }
    return [
        {
            "row": row,
            "label": text,
            "stage": "pretrain",
            "seeds": [seed for seed, _ in figures],
            "top1": stats(top1[row]),
            "top5": stats([]),
        }
        for row, text in KNN.items()
    ]


def _title(runs: list[ReportedRun]) -> str:
    """The name that the runs share, else the first one's (seeds may be told apart by name)."""
    return _shared(run.name for run in runs) or runs[0].name


def _shared(values: Iterable[Any]) -> Any:
    """The value all have in common, or None."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else None


def _data(runs: list[ReportedRun]) -> Json:
    """Identity and counts of the data set the classifiers were judged on."""
    judged = next((run.judged for run in runs if run.judged is not None), None)
    if judged is None:
        told = next((run.told for run in runs if run.told), None)
        samples = told.samples.model_dump() if told and not told.labelled else {}
        unknown: Json = {"samples": samples, "classes": None, "random_guess": {}}
        return {**runs[0].record.data.model_dump(), **unknown}
    return {
        **judged.data.model_dump(),
        "samples": judged.samples.model_dump(),
        "classes": len(judged.classes),
        "random_guess": {
            key: {"seeds": [], "values": [], "mean": value, "sd": None, "n": 0}
            for key, value in judged.random_guess.model_dump().items()
        },
    }


def _reconstruction(runs: list[ReportedRun]) -> Json:
    """Fidelity over seeds, and each seed's figures and picture."""
    seeds: list[Json] = []
    for run in runs:
        figures = run.told.reconstruction.model_dump() if run.told else {}
        picture = run.picture.uri if run.picture else None
        if figures or picture:
            seeds.append({"seed": run.seed, "run": run.uri, "picture": picture, **figures})
    return {
        "psnr": stats((s["seed"], s.get("psnr")) for s in seeds),
        "ssim": stats((s["seed"], s.get("ssim")) for s in seeds),
        "distance": stats((s["seed"], s.get("distance")) for s in seeds),
        "seeds": seeds,
    }


def _has_no_labels(run: ReportedRun) -> bool:
    return run.told is not None and not run.told.labelled


def _features(runs: list[ReportedRun]) -> Json:
    """What the features alone tell, over seeds, and each seed's gallery of neighbours."""
    ranks = [(run.seed, run.told.rank) for run in runs if run.told and run.told.rank]
    last = ranks[-1][1] if ranks else None
    return {
        "rankme": stats((seed, rank.value) for seed, rank in ranks),
        "untrained_rankme": stats((seed, rank.untrained) for seed, rank in ranks),
        "images": last.images if last else None,
        "dimensions": last.dimensions if last else None,
        "galleries": [
            {"seed": run.seed, "run": run.uri, "picture": run.neighbours.uri}
            for run in runs
            if run.neighbours
        ],
    }


def _classes(judged: Judged) -> list[Json]:
    """Top-1 of each class over seeds; a class without test images has none."""
    return [
        {
            **item.model_dump(exclude={"top1"}),
            "top1": stats((seed, found.classes[i].top1) for seed, found in judged),
        }
        for i, item in enumerate(judged[0][1].classes)
    ]


def _confusion(judged: Judged) -> Json:
    """Counts summed over seeds: rows are true classes, columns predicted ones."""
    import numpy as np

    names = [item.name for item in judged[0][1].classes]
    matrices = [found.confusion for _, found in judged]
    counts = np.asarray(matrices, dtype=np.int64).sum(axis=0)
    totals = np.maximum(counts.sum(axis=1), 1)
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    cells = [divmod(int(cell), len(names)) for cell in order]
    return {
        "seeds": [seed for seed, _ in judged],
        "counts": counts.tolist() if len(names) <= MANY_CLASSES else None,
        "top": [
            {
                "true": names[i],
                "predicted": names[j],
                "count": int(counts[i, j]),
                "share": float(counts[i, j] / totals[i]),
            }
            for i, j in cells
            if mistakes[i, j] > 0
        ],
    }


def _run(run: ReportedRun) -> Json:
    """One run's identity, length and last figures."""
    record = run.record
    rates = sorted(value for _, value in run.curve("train", "images_per_second"))
    epochs = [row.epoch for row in run.history if row.split == "train"]
    return {
        "uri": run.uri,
        "kind": run.kind,
        **record.model_dump(exclude={"format", "config", "epochs"}),
        "epochs": record.epochs or (epochs[-1] if epochs else None),
        "images_per_second": rates[len(rates) // 2] if rates else None,
        **gpu_hours(record),
        "evaluated": run.evaluation is not None,
    }


def gpu_hours(record: RunRecord) -> Json:
    """How long a run has held GPUs, in hours, and what that has cost at its config's price; None
    where it ran on none, and where no price is given."""
    hours = record.gpu_seconds / 3600
    price = record.config.get("tracking", {}).get("gpu_price", 0)
    return {"gpu_hours": hours or None, "cost": hours * price or None}


def _versions(runs: list[ReportedRun]) -> dict[str, str]:
    """Each tool's version; where runs differ, all of them, so that it does not go unnoticed."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for tool, version in run.record.versions.items():
            found.setdefault(tool, {})[version] = None
    return {tool: ", ".join(versions) for tool, versions in found.items()}


def _missing(by_kind: dict[str, list[ReportedRun]], unlabelled: bool) -> list[str]:
    """In words, what a whole report would have and this one has not.

    Without labels there is nothing that a classifier would have been.
    """
    nothing = {
        "pretrain": "No pretraining run was given, so there are no reconstructions and no "
        "pretraining curve.",
        "probe": "No linear probe was given: how good the encoder's features are is not measured.",
        "probe_untrained": "No probe of an untrained encoder was given, so the pretrained one has "
        "nothing to be compared with.",
        "finetune": "No fine-tuning run was given, so there is no fine-tuned accuracy.",
    }
    # Of whatever share of the labels.
    given = {
        str(run.record.kind._replace(label_fraction=1.0))
        for runs in by_kind.values()
        for run in runs
    }
    wanted = {"pretrain"} if unlabelled else nothing.keys()
    lines = [line for kind, line in nothing.items() if kind in wanted and kind not in given]
    for runs in by_kind.values():
        for run in runs:
            if not run.complete:
                lines.append(
                    f"{run.name} (seed {run.seed}) is not finished: step {run.record.step} "
                    f"of {run.record.total_steps}."
                )
            if not run.evaluation:
                lines.append(
                    f"{run.name} (seed {run.seed}) has not been evaluated, so its test figures "
                    "are not in this report."
                )
    return lines
