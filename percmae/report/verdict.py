"""Did it learn? The pretrained encoder against its untrained control, said honestly."""

from __future__ import annotations

import math
import statistics

from percmae.report.stats import Json, points, spread


def judge(table: list[Json], test_samples: int | None) -> Json:
    """The answer to "did it learn?" from the rows of the result table.

    outcome: ``better`` (ahead in every seed, by more than the size of the test set leaves open),
    ``unclear`` (ahead on average, but not so), ``not_better``, or ``unknown`` (a figure is
    missing). gap: top-1 of the probe minus the control's, by seed. resolution: twice the standard
    error of that difference that the number of test images alone would cause; seeds share their
    test images, so more seeds do not make it smaller.
    """
    rows = {row["row"]: row for row in table}
    probe, control = rows.get("probe"), rows.get("probe_untrained")
    if probe is None or control is None:
        return _unknown(_absent(probe, control))
    gaps = _gaps(probe, control)
    if not gaps:
        return _unknown(
            "The probe and its control were run with different seeds "
            f"({_listed(probe['seeds'])} against {_listed(control['seeds'])}), so there is no "
            "pair to compare."
        )
    mean = statistics.fmean(gaps.values())
    wins = sum(gap > 0 for gap in gaps.values())
    resolution = _resolution(probe["top1"]["mean"], control["top1"]["mean"], test_samples)
    clear = wins == len(gaps) and mean > (resolution or 0.0)
    outcome = "not_better" if mean <= 0 else "better" if clear else "unclear"
    sd = statistics.stdev(gaps.values()) if len(gaps) > 1 else None
    gap = {"seeds": list(gaps), "values": list(gaps.values()), "mean": mean, "sd": sd}
    verdict = {"outcome": outcome, "gap": {**gap, "n": len(gaps)}, "resolution": resolution}
    return {
        **verdict,
        "answer": _answer(outcome, verdict, probe, control, wins),
        "notes": _notes(verdict, probe, control, rows.get("random_guess"), test_samples),
    }


def judge_without_labels(features: Json) -> Json:
    """What can be said where no image has a label: of the rank of the features alone.

    features: as in report.json. The outcome is ``unknown``: a rank says how much of its space a
    representation uses, not what for.
    """
    rank, before = features["rankme"], features["untrained_rankme"]
    if rank["mean"] is None:
        return _unknown("The images have no labels, and the effective rank was not measured.")
    found = _unknown(
        "The effective rank (RankMe) of the "
        f"features of {features['images']:,} test images is {spread(rank, 1)} of "
        f"{features['dimensions']:,} dimensions, and was {spread(before, 1)} before pretraining.",
        "There are no labels to tell by.",
    )
    found["notes"] = [
        "A higher rank means features that use more of their dimensions: a sign by which to choose "
        "among variants or checkpoints, no measure of what the features are good for. Look at the "
        "nearest neighbours too."
    ]
    return found


def _unknown(reason: str, answer: str = "Not known.") -> Json:
    return {
        "outcome": "unknown",
        "answer": f"{answer} {reason}",
        "gap": None,
        "resolution": None,
        "notes": [],
    }


def _absent(probe: Json | None, control: Json | None) -> str:
    if probe is None:
        return (
            "There is no evaluated linear probe on the pretrained encoder, which is what would "
            "tell."
        )
    return (
        f"The linear probe on the pretrained encoder reaches {points(probe['top1'])} % top-1, but "
        "there is no evaluated probe on an untrained encoder to hold it against."
    )


def _gaps(probe: Json, control: Json) -> dict[int, float]:
    base = dict(zip(control["top1"]["seeds"], control["top1"]["values"], strict=True))
    ours = zip(probe["top1"]["seeds"], probe["top1"]["values"], strict=True)
    return {seed: value - base[seed] for seed, value in ours if seed in base}


def _resolution(a: float, b: float, samples: int | None) -> float | None:
    """Two standard errors of a difference of two accuracies on ``samples`` images."""
    if not samples:
        return None
    return 2 * math.sqrt((a * (1 - a) + b * (1 - b)) / samples)


def _answer(outcome: str, verdict: Json, probe: Json, control: Json, wins: int) -> str:
    gap = verdict["gap"]
    n = gap["n"]
    against = f"{points(probe['top1'])} % against {points(control['top1'])} %"
    if outcome == "not_better":
        return (
            "No. The linear probe on the pretrained encoder did not beat the same probe on the "
            f"untrained encoder: {against} top-1."
        )
    if outcome == "better":
        start, where = ("Yes.", f"in each of {n} seeds") if n > 1 else _ONE_SEED
        return (
            f"{start} The linear probe on the pretrained encoder beat the same probe on the "
            f"untrained encoder {where}, by {points(gap)} points of top-1 accuracy ({against})."
        )
    doubt = (
        f"but it won in only {wins} of {n} seeds"
        if wins < n
        else "which is less than a test set of this size can tell apart "
        f"(about {100 * verdict['resolution']:.1f} points)"
    )
    return (
        "Not clear. The linear probe on the pretrained encoder was ahead of the same probe on "
        f"the untrained encoder by {points(gap)} points of top-1 accuracy ({against}), {doubt}."
    )


_ONE_SEED = ("Yes, as far as one seed can tell.", "in the one seed that was run")


def _notes(
    verdict: Json, probe: Json, control: Json, guess: Json | None, samples: int | None
) -> list[str]:
    notes = []
    n = verdict["gap"]["n"]
    if n == 1:
        notes.append("With one seed the spread over seeds is not known; three or more would tell.")
    if sorted(probe["seeds"]) != sorted(control["seeds"]):
        notes.append(
            f"Compared over the seeds that both have ({_listed(verdict['gap']['seeds'])}); the "
            f"probe ran with {_listed(probe['seeds'])}, its control with "
            f"{_listed(control['seeds'])}."
        )
    said = verdict["outcome"] == "unclear" and min(verdict["gap"]["values"]) > 0
    if verdict["resolution"] and samples and not said:
        notes.append(
            f"{samples:,} test images resolve differences of about "
            f"{100 * verdict['resolution']:.1f} points (two standard errors)."
        )
    if guess and probe["top1"]["mean"] <= guess["top1"]["mean"] + (verdict["resolution"] or 0.0):
        notes.append(
            f"The probe on the pretrained encoder is not clearly better than a random guess "
            f"({points(guess['top1'])} %)."
        )
    return notes


def _listed(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds) or "none"
