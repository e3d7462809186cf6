"""What pretraining is for, as goals, and which of them the figures reach."""

from __future__ import annotations

import statistics

from percmae.report.kinds import share
from percmae.report.stats import Json, points, stats

AHEAD = 0.15
"""How far a pretrained encoder's probe should be ahead of an untrained one's, as a share."""


def judge_goals(table: list[Json]) -> list[Json]:
    """``{"goal", "holds", "gap", "text"}`` for each goal that there are figures for.

    table: rows of the result table. gap: ``stats`` of the difference in top-1, over the seeds that
    both rows have; it holds when the mean difference reaches what is asked for.
    """
    rows = {row["row"]: row for row in table}
    goals = [
        _goal("probe ≥ raw pixels", rows.get("probe"), rows.get("probe_pixels"), 0.0),
        _goal(
            f"probe ≥ {100 * AHEAD:.0f} points above the untrained encoder",
            rows.get("probe"),
            rows.get("probe_untrained"),
            AHEAD,
        ),
    ]
    tuned = [row for row in table if row.get("stage") == "finetune"]
    scratch = {row["label_fraction"]: row for row in tuned if row["features"] == "untrained"}
    for row in tuned:
        fraction = row["label_fraction"]
        if row["features"] == "pretrained":
            goal = f"fine-tuned ≥ from scratch, {share(fraction)}"
            goals.append(_goal(goal, row, scratch.get(fraction), 0.0))
    return [goal for goal in goals if goal is not None]


def _goal(goal: str, ours: Json | None, theirs: Json | None, ahead: float) -> Json | None:
    if ours is None or theirs is None:
        return None
    base = dict(zip(theirs["top1"]["seeds"], theirs["top1"]["values"], strict=True))
    pairs = zip(ours["top1"]["seeds"], ours["top1"]["values"], strict=True)
    gaps = [(seed, value - base[seed]) for seed, value in pairs if seed in base]
    if not gaps:
        return None
    gap = stats(gaps)
    holds = statistics.fmean(value for _, value in gaps) >= ahead
    against = f"{points(ours['top1'])} % against {points(theirs['top1'])} %"
    return {
        "goal": goal,
        "holds": holds,
        "gap": gap,
        "text": f"{'Reached' if holds else 'Not reached'}: {goal} "
        f"({points(gap, signed=True)} points, {against}).",
    }
