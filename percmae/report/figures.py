"""From run folders to the figures of a report: tables, means over seeds, counts, identities."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from percmae.report.read import Json, Run
from percmae.report.verdict import judge

FORMAT = "percmae-report/1"

LABELS = {
    "probe": "Linear probe, pretrained encoder",
    "probe_untrained": "Linear probe, untrained encoder",
    "finetune": "Fine-tuned, pretrained encoder",
    "finetune_untrained": "Fine-tuned, untrained encoder",
}
MANY_CLASSES = 100
"""Above this many classes report.json lists the most frequent confusions, not every count."""


def collect(runs: list[Run]) -> Json:
    """The whole of report.json, but for the addresses of the report's own files.

    All shares (top1, top5, ece) are in 0..1, psnr in dB, seconds in s. A ``stats`` object is
    ``{"seeds", "values", "mean", "sd", "n"}``, sd the sample standard deviation over seeds, None
    for one seed.
    """
    by_kind = {kind: [run for run in runs if run.kind == kind] for kind in ("pretrain", *LABELS)}
    judged = {kind: [r for r in by_kind[kind] if r.evaluation] for kind in LABELS}
    table = [_row(kind, rows) for kind, rows in judged.items() if rows]
    data = _data(runs)
    if data["random_guess"]:
        table.append({"row": "random_guess", "label": "Random guess", **data["random_guess"]})
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": _title(by_kind["pretrain"] or runs),
        "variant": runs[0].info["variant"],
        "tag": _shared(run.info.get("tag") for run in runs),
        "seeds": sorted({run.seed for run in runs}),
        "data": data,
        "verdict": judge(table, data["samples"].get("test")),
        "table": table,
        "reconstruction": _reconstruction(by_kind["pretrain"]),
        "classes": {kind: _classes(rows) for kind, rows in judged.items() if rows},
        "confusion": {kind: _confusion(rows) for kind, rows in judged.items() if rows},
        "runs": [_run(run) for kind in by_kind for run in by_kind[kind]],
        "versions": _versions(runs),
        "missing": _missing(by_kind),
    }


def stats(pairs: Iterable[tuple[int, float | None]]) -> Json:
    """Mean and sample standard deviation of ``(seed, figure)`` pairs; None figures do not count.

    The mean is None when there are none, the deviation when there is one.
    """
    given = {seed: float(value) for seed, value in pairs if value is not None}
    values = list(given.values())
    return {
        "seeds": list(given),
        "values": values,
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _row(kind: str, runs: list[Run]) -> Json:
    keys = ("top1", "top5", "ece", "loss")
    figures = {key: stats((run.seed, _evaluation(run).get(key)) for run in runs) for key in keys}
    return {"row": kind, "label": LABELS[kind], "seeds": [run.seed for run in runs], **figures}


def _evaluation(run: Run) -> Json:
    return run.evaluation or {}


def _title(runs: list[Run]) -> str:
    """The name that the runs share, else the first one's (seeds may be told apart by name)."""
    return _shared(run.name for run in runs) or runs[0].name


def _shared(values: Iterable[Any]) -> Any:
    """The value all have in common, or None."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else None


def _data(runs: list[Run]) -> Json:
    """Identity and counts of the data set the classifiers were judged on."""
    judged = [run for run in runs if run.evaluation and run.stage != "pretrain"]
    source = _evaluation(judged[0]) if judged else runs[0].info
    identity = source.get("data") or {}
    guess = source.get("random_guess") or {}
    return {
        "uri": identity.get("uri"),
        "digest": identity.get("digest"),
        "samples": dict(source.get("samples") or {}),
        "classes": len(source["classes"]) if judged else None,
        "random_guess": {
            key: {"seeds": [], "values": [], "mean": float(value), "sd": None, "n": 0}
            for key, value in guess.items()
        },
    }


def _reconstruction(runs: list[Run]) -> Json:
    """Fidelity over seeds, and each seed's figures and picture."""
    seeds = []
    for run in runs:
        figures = _evaluation(run).get("reconstruction") or {}
        picture = run.picture.uri if run.picture else None
        if figures or picture:
            seeds.append({"seed": run.seed, "run": run.uri, "picture": picture, **figures})
    return {
        "psnr": stats((s["seed"], s.get("psnr")) for s in seeds),
        "ssim": stats((s["seed"], s.get("ssim")) for s in seeds),
        "seeds": seeds,
    }


def _classes(runs: list[Run]) -> list[Json]:
    """Top-1 of each class over seeds; a class without test images has none."""
    return [
        {
            **{key: item[key] for key in ("wnid", "name", "samples")},
            "top1": stats((run.seed, _evaluation(run)["classes"][i].get("top1")) for run in runs),
        }
        for i, item in enumerate(_evaluation(runs[0])["classes"])
    ]


def _confusion(runs: list[Run]) -> Json:
    """Counts summed over seeds: rows are true classes, columns predicted ones."""
    import numpy as np

    names = [item["name"] for item in _evaluation(runs[0])["classes"]]
    matrices = [_evaluation(run)["confusion"] for run in runs]
    counts = np.asarray(matrices, dtype=np.int64).sum(axis=0)
    totals = np.maximum(counts.sum(axis=1), 1)
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    cells = [divmod(int(cell), len(names)) for cell in order]
    return {
        "seeds": [run.seed for run in runs],
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


def _run(run: Run) -> Json:
    """One run's identity, length and last figures."""
    info = run.info
    rates = sorted(value for _, value in run.curve("train", "images_per_second"))
    keys = ("name", "stage", "seed", "variant", "tag", "key", "config_digest", "data", "parent")
    timings = ("status", "step", "total_steps", "started", "finished", "seconds")
    epochs = [epoch for _, epoch in run.curve("train", "epoch")]
    return {
        "uri": run.uri,
        "kind": run.kind,
        "baseline": bool(info.get("baseline")),
        **{key: info.get(key) for key in keys + timings},
        "epochs": info.get("epochs") or (epochs[-1] if epochs else None),
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "metrics": info.get("metrics") or {},
        "versions": info.get("versions") or {},
        "evaluated": run.evaluation is not None,
    }


def _versions(runs: list[Run]) -> dict[str, str]:
    """Each tool's version; where runs differ, all of them, so that it does not go unnoticed."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for tool, version in (run.info.get("versions") or {}).items():
            found.setdefault(str(tool), {})[str(version)] = None
    return {tool: ", ".join(versions) for tool, versions in found.items()}


def _missing(by_kind: dict[str, list[Run]]) -> list[str]:
    """In words, what a whole report would have and this one has not."""
    nothing = {
        "pretrain": "No pretraining run was given, so there are no reconstructions and no "
        "pretraining curve.",
        "probe": "No linear probe was given: how good the encoder's features are is not measured.",
        "probe_untrained": "No probe of an untrained encoder was given, so the pretrained one has "
        "nothing to be compared with.",
        "finetune": "No fine-tuning run was given, so there is no fine-tuned accuracy.",
    }
    lines = [line for kind, line in nothing.items() if not by_kind[kind]]
    for runs in by_kind.values():
        for run in runs:
            if not run.complete:
                lines.append(
                    f"{run.name} (seed {run.seed}) is not finished: step {run.info.get('step')} "
                    f"of {run.info.get('total_steps')}."
                )
            if not run.evaluation:
                lines.append(
                    f"{run.name} (seed {run.seed}) has not been evaluated, so its test figures "
                    "are not in this report."
                )
    return lines
