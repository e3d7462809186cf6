"""Variants side by side as pictures: what each makes of the same images, and how each learned."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from percmae.report.charts import quiet_matplotlib
from percmae.report.compare_chart import INK, LINE, MUTED, figure_png
from percmae.report.read import ReportedRun, StoredPicture
from percmae.report.stats import Json, stats
from percmae.runs.evaluation import GRID_COLUMNS, GRID_GAP

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's colours, which the colour-blind can tell apart; the markers differ too.
_LINES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#56b4e9", "v"),
    ("#e69f00", "P"),
)
_SHOWN = 96  # pixels that an image is enlarged to at least
_GAP, _HEAD = 6, 26


def side_by_side(pictures: Sequence[tuple[str, StoredPicture]]) -> bytes | None:
    """PNG: a row an image: the original, what the encoders saw, what each variant made of it.

    pictures: (variant, the grid of its evaluation); shown is its last column, with the visible
    patches pasted. A variant whose encoder saw other patches than the one before it has those in
    front. None where the grids are not of the same images.
    """
    grids = [(name, _cells(picture)) for name, picture in pictures]
    originals = [row[0] for row in grids[0][1]]
    if any(_other(originals, [row[0] for row in rows]) for _, rows in grids):
        return None
    columns = [("original", originals)]
    seen: list[Image] = []
    for name, rows in grids:
        masked = [row[1] for row in rows]
        if _other(seen, masked):
            columns.append(("masked", masked))
            seen = masked
        columns.append((name, [row[-1] for row in rows]))
    return _png(_laid_out(columns))


def _other(some: list[Image], others: list[Image]) -> bool:
    return [image.tobytes() for image in some] != [image.tobytes() for image in others]


def _cells(picture: StoredPicture) -> list[list[Image]]:
    """The images of a grid (percmae.engine.pictures.reconstruction_grid), by row and column."""
    from percmae.data.decode import decode

    whole = decode(picture.data, name=picture.uri, formats=["PNG"])
    side = (whole.width + GRID_GAP) // len(GRID_COLUMNS) - GRID_GAP
    step = side + GRID_GAP
    return [
        [
            whole.crop((column * step, row * step, column * step + side, row * step + side))
            for column in range(len(GRID_COLUMNS))
        ]
        for row in range((whole.height + GRID_GAP) // step)
    ]


def _laid_out(columns: list[tuple[str, list[Image]]]) -> Image:
    """Columns of images under their names."""
    from PIL import Image, ImageDraw, ImageFont

    side = columns[0][1][0].width
    shown = side * max(1, -(-_SHOWN // side))
    step = shown + _GAP
    size = (len(columns) * step - _GAP, _HEAD + len(columns[0][1]) * step - _GAP)
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for place, (name, images) in enumerate(columns):
        pen.text((place * step + shown / 2, _HEAD / 2), name, fill=INK, font=font, anchor="mm")
        for row, image in enumerate(images):
            enlarged = image.resize((shown, shown), Image.Resampling.NEAREST)
            page.paste(enlarged, (place * step, _HEAD + row * step))
    return page


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def learning(runs: list[ReportedRun], samples: int | None) -> list[Json]:
    """How the encoder improved while it was pretrained: a point a validation, in order.

    runs: a variant's pretrainings, a seed each; samples: training images, all of which an epoch
    has. Each point has ``epoch``, ``images`` seen, ``seconds`` of training up to there (the run's,
    by its steps) and the stats of ``knn_top1`` and ``rankme``. Epochs that not all seeds have are
    left out.
    """
    found: dict[float, list[tuple[ReportedRun, int, dict[str, float | None]]]] = {}
    for run in runs:
        for row in run.history:
            if row.split == "val":
                found.setdefault(row.epoch, []).append((run, row.step, dict(row.figures)))
    return [
        {
            "epoch": epoch,
            "images": None if samples is None else round(epoch * samples),
            "seconds": stats((run.seed, _seconds(run, step)) for run, step, _ in rows),
            **{
                key: stats((run.seed, figures.get(key)) for run, _, figures in rows)
                for key in ("knn_top1", "rankme")
            },
        }
        for epoch, rows in sorted(found.items())
        if len(rows) == len(runs)
    ]


def _seconds(run: ReportedRun, step: int) -> float | None:
    record = run.record
    return record.seconds * step / record.step if record.seconds and record.step else None


def draw_learning(document: Json) -> bytes | None:
    """PNG of all variants' curves, over images seen and over seconds; None where there are none.

    document: compare.json's content (:func:`percmae.report.compare.compare`).
    """
    figure = learning_figure(document)
    return None if figure is None else figure_png(figure)


def learning_figure(document: Json) -> Figure | None:
    """The same before it is drawn; without labels the rank is in the accuracy's place."""
    key, label, scale = ("knn_top1", "k-NN on the validation slice, %", 100.0)
    if not document["labelled"]:
        key, label, scale = ("rankme", "RankMe, effective rank of the features", 1.0)
    curves = {
        row["variant"]: [point for point in row["learning"] if point[key]["mean"] is not None]
        for row in document["rows"]
        if row["error"] is None
    }
    if not any(len(points) > 1 for points in curves.values()):
        return None
    quiet_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"font.size": 10, "text.color": INK, "axes.labelcolor": MUTED}
    with matplotlib.rc_context(settings):
        figure = Figure((11.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        axis = (
            ("at equal images seen", "epochs", lambda point: point["epoch"]),
            ("at equal time", "seconds of training", lambda point: point["seconds"]["mean"]),
        )
        for axes, (title, name, place) in zip(panels, axis, strict=True):
            for (variant, points), (colour, marker) in zip(curves.items(), _LINES, strict=False):
                shown = [point for point in points if place(point) is not None]
                axes.errorbar(
                    [place(point) for point in shown],
                    [scale * point[key]["mean"] for point in shown],
                    yerr=[scale * (point[key]["sd"] or 0.0) for point in shown],
                    color=colour, marker=marker, markersize=4, linewidth=1.4, capsize=2,
                    elinewidth=0.8, label=variant,
                )  # fmt: skip
            axes.set_title(title, loc="left", fontsize=11)
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
            axes.grid(color=LINE, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(label)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure
