"""The charts of a report: how training went, how many labels it takes, what lies near what."""

from __future__ import annotations

from collections.abc import Iterable

from percmae.report.charts import Series, line_chart, scatter
from percmae.report.kinds import colour, ordered
from percmae.report.read import Axis, ReportedRun
from percmae.report.stats import Json
from percmae.runs.evaluation import ReconstructionEvaluation


def charts(report: Json, runs: list[ReportedRun]) -> list[Json]:
    """Title, caption and SVG of each chart that there are figures for."""
    pretrain = [run for run in runs if run.stage == "pretrain"]
    loss = _series(pretrain, [("train", "train", "blue"), ("val", "validation", "orange")], "loss")
    found = []
    if loss:
        svg = line_chart("pretrain", _alt("Pretraining loss", loss), loss, "step", "loss")
        caption = "On the training images and on the validation slice."
        found.append({"title": "Pretraining loss", "caption": caption, "svg": svg})
    guess = (report["data"]["random_guess"].get("top1") or {}).get("mean")
    neighbours = _series(pretrain, [("val", "k-NN", "blue")], "knn_top1", x="epoch")
    if neighbours:
        found.append(_neighbours_chart(neighbours, guess))
    if rank := _series(pretrain, [("val", "RankMe", "blue")], "rankme", x="epoch"):
        title = "Effective rank of the features"
        svg = line_chart("rank", _alt(title, rank), rank, "epoch", "RankMe")
        caption = (
            "Of held-out images' features: how many of their dimensions they use, from 1, a "
            "collapsed representation, up."
        )
        found.append({"title": title, "caption": caption, "svg": svg})
    terms = _terms(pretrain)
    if len(terms) > 1:
        svg = line_chart("terms", _alt("Terms of the loss", terms), terms, "step", "term")
        caption = f"The objective's terms on the training images, seed {terms[0].seed}."
        found.append({"title": "Terms of the pretraining loss", "caption": caption, "svg": svg})
    for stage, title in (("probe", "Linear probe"), ("finetune", "Fine-tuning")):
        kinds = ordered(r.record.kind for r in runs if r.stage == stage)
        curves = [
            curve
            for kind in reversed(kinds)
            if kind.label_fraction == 1
            for curve in _series(
                [run for run in runs if run.record.kind == kind],
                [("val", kind.features, colour(kind))],
                "top1",
                x="epoch",
            )
        ]
        if curves:
            svg = line_chart(
                stage,
                _alt(f"{title}, validation top-1", curves),
                curves,
                "epoch",
                "top-1",
                percent=True,
                guess=guess,
            )
            caption = "Top-1 accuracy on the validation slice while the classifier learns."
            found.append({"title": title, "caption": caption, "svg": svg})
    return found


def efficiency_chart(report: Json) -> Json | None:
    """Test accuracy over the share of the labels; None where there is one share alone."""
    tuned = [row for row in report["table"] if row.get("stage") == "finetune"]
    if len({row["label_fraction"] for row in tuned}) < 2:
        return None
    series = []
    for features, text, ink in (
        ("pretrained", "fine-tuned", "green"),
        ("untrained", "from scratch", "orange"),
    ):
        rows = [row for row in tuned if row["features"] == features]
        for seed in report["seeds"]:
            points = [
                (row["label_fraction"], row["top1"]["values"][row["top1"]["seeds"].index(seed)])
                for row in rows
                if seed in row["top1"]["seeds"]
            ]
            series.append(Series(text, seed, points, ink))
    series = [item for item in series if item.points]
    guess = report["data"]["random_guess"]["top1"]["mean"]
    svg = line_chart(
        "efficiency",
        _alt("Test top-1 over the share of the labels", series),
        series,
        "share of the labels",
        "top-1",
        percent=True,
        guess=guess,
        shares=True,
    )
    caption = "Top-1 accuracy on the test images, by the share of the training labels used."
    return {"title": "How many labels does it need?", "caption": caption, "svg": svg}


def embedding_chart(runs: list[ReportedRun]) -> Json | None:
    """Test images in feature space, of the first seed that has the picture."""
    for run in runs:
        found = run.evaluation
        if isinstance(found, ReconstructionEvaluation) and found.embedding is not None:
            shown = found.embedding
            title = "What lies near what?"
            alt = f"{len(shown.points)} test images by {shown.method}, coloured by class"
            svg = scatter("features", alt, shown.points, shown.labels, shown.classes)
            caption = (
                f"{len(shown.points)} test images in the feature space of the pretrained encoder, "
                f"which has seen no label, by {shown.method}; coloured by class, seed {run.seed}."
            )
            return {"title": title, "caption": caption, "svg": svg}
    return None


def _neighbours_chart(series: list[Series], guess: float | None) -> Json:
    title = "k-NN accuracy of the encoder"
    svg = line_chart(
        "knn", _alt(title, series), series, "epoch", "top-1", percent=True, guess=guess
    )
    caption = (
        "Validation images classified by their nearest training images in feature space: does the "
        "representation improve while it is pretrained?"
    )
    return {"title": title, "caption": caption, "svg": svg}


def _series(
    runs: Iterable[ReportedRun], splits: list[tuple[str, str, str]], key: str, x: Axis = "step"
) -> list[Series]:
    found = [
        Series(label, run.seed, run.curve(split, key, x), colour)
        for split, label, colour in splits
        for run in runs
    ]
    return [series for series in found if series.points]


def _terms(runs: list[ReportedRun]) -> list[Series]:
    """The loss terms of the first seed, up to as many as there are colours."""
    if not runs:
        return []
    rows = (row.figures for row in runs[0].history if row.split == "train")
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("loss/"))
    colours = ("blue", "orange", "green", "grey")
    return [
        Series(key.removeprefix("loss/"), runs[0].seed, runs[0].curve("train", key), colour)
        for key, colour in zip(keys, colours, strict=False)
    ]


def _alt(title: str, series: list[Series]) -> str:
    """What a reader who cannot see the chart needs: where each curve starts and ends."""
    ends = [(s, s.points[0][1], s.points[-1][1]) for s in series]
    return f"{title}. " + "; ".join(
        f"{s.label}, seed {s.seed}: from {first:.3f} to {last:.3f}" for s, first, last in ends
    )
