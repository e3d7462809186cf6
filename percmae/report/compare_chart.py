"""The picture of a comparison: accuracies, fidelity and cost of each variant, drawn to a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

from percmae.report.charts import quiet_matplotlib
from percmae.report.compare_text import COLUMNS, Column, cell
from percmae.report.stats import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours, which the colour-blind can tell apart; the markers differ too.
INK, MUTED, LINE, _BAND, _BAR = "#1b2028", "#566070", "#d5dae2", "#f4f6f9", "#8fa3b8"


class _Mark(NamedTuple):
    key: str
    label: str
    colour: str
    marker: str


_MARKS = (
    _Mark("finetune", "fine-tuned", "#009e73", "D"),
    _Mark("probe", "linear probe", "#0072b2", "o"),
    _Mark("knn", "k-NN (validation slice)", "#d55e00", "^"),
    _Mark("probe_untrained", "linear probe, untrained encoder", "#6b7280", "s"),
)
_BARS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "distance": "distance",
    "step_seconds": "seconds a step",
}
_WIDTH, _ROW, _FRAME, _DPI = 13.0, 0.95, 1.75, 150


def draw(document: Json) -> bytes:
    """PNG of a comparison, a row a variant; whiskers are one standard deviation over seeds.

    document: compare.json's content (:func:`percmae.report.compare.compare`).
    """
    return figure_png(compare_figure(document))


def figure_png(figure: Figure) -> bytes:
    """A figure of a comparison as PNG."""
    buffer = io.BytesIO()
    # Without the version of matplotlib in it.
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def compare_figure(document: Json) -> Figure:
    """The same before it is drawn; without labels the rank is in the accuracies' place."""
    quiet_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = document["rows"]
    settings: Any = {
        "font.size": 11,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "xtick.labelcolor": MUTED,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure((_WIDTH, _FRAME + _ROW * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
        panels = figure.subplots(
            1, 1 + len(_BARS), width_ratios=[3.4, *[1] * len(_BARS)], squeeze=False
        )[0]
        for axes in panels:
            _frame(axes, len(rows))
        bars = list(zip(panels[1:], _BARS.items(), strict=True))
        if document["labelled"]:
            _accuracies(panels[0], rows, document["random_guess"])
        else:
            bars = [(panels[0], ("rankme", "RankMe, effective rank of the features")), *bars]
            for place, row in enumerate(rows):
                if row["error"] is not None:
                    _failed(panels[0], place, 0)
        for axes, (key, title) in bars:
            _bars(axes, rows, next(column for column in COLUMNS if column.key == key))
            axes.set_title(title, fontsize=11, loc="left", color=INK)
        _name(panels[0], rows)
        _legend(figure, rows, document["random_guess"])
    return figure


def _frame(axes: Axes, rows: int) -> None:
    """A band behind every other row, no more ink than needed."""
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for place in range(0, rows, 2):
        axes.axhspan(place - 0.5, place + 0.5, color=_BAND, linewidth=0, zorder=0)


def _name(axes: Axes, rows: list[Json]) -> None:
    """The variants' names, in front of the first panel."""
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.tick_params(axis="y", labelsize=12, labelcolor=INK, pad=8)


def _failed(axes: Axes, place: int, start: float) -> None:
    axes.text(start, place, "failed", color=MUTED, va="center", style="italic", zorder=3)


def _accuracies(axes: Axes, rows: list[Json], guess: float | None) -> None:
    # Room for a mark at 0 %, and behind 100 % for the figures beside the marks.
    axes.set_xlim(-1.5, 124)
    axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.set_title("top-1 accuracy", fontsize=11, loc="left", color=INK)
    axes.vlines(range(0, 101, 20), -0.5, len(rows) - 0.5, color=LINE, linewidth=0.8, zorder=1)
    if guess is not None:
        axes.axvline(100 * guess, color=MUTED, linewidth=1.3, linestyle=(0, (1.5, 2)), zorder=1.5)
    for place, row in enumerate(rows):
        if row["error"] is not None:
            _failed(axes, place, 2 + 100 * (guess or 0))
            continue
        shown = [mark for mark in _MARKS if row[mark.key]["mean"] is not None]
        for lane, mark in enumerate(shown):
            height = place + 0.21 * (lane - (len(shown) - 1) / 2)
            _mark(axes, row[mark.key], height, mark, "white" if place % 2 else _BAND)


def _mark(axes: Axes, stats: Json, height: float, mark: _Mark, ground: str) -> None:
    """A mean with its whisker, and both in figures to its right."""
    mean, sd = 100 * stats["mean"], 100 * (stats["sd"] or 0.0)
    axes.errorbar(
        mean,
        height,
        xerr=sd or None,
        fmt=mark.marker,
        color=mark.colour,
        markersize=5.5,
        capsize=4,
        elinewidth=1.6,
        zorder=3,
    )
    text = f"{mean:.1f} ± {sd:.1f}" if stats["sd"] is not None else f"{mean:.1f}"
    axes.annotate(
        text,
        (mean + sd, height),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9.5,
        zorder=2,
        # So that neither grid nor guess line runs through a figure.
        bbox={"boxstyle": "square,pad=0.1", "facecolor": ground, "linewidth": 0},
    )


def _bars(axes: Axes, rows: list[Json], column: Column) -> None:
    """A bar a variant, with its figure as the table has it."""
    found = [(i, row[column.key]) for i, row in enumerate(rows) if row["error"] is None]
    found = [(place, stats) for place, stats in found if stats["mean"] is not None]
    axes.set_xticks([])
    if not found:
        axes.text(0, 0, "–", color=MUTED, va="center")
        return
    longest = max(stats["mean"] + (stats["sd"] or 0.0) for _, stats in found)
    lowest = min(0.0, *(stats["mean"] for _, stats in found))  # an SSIM can be below 0
    # Room for the figures behind the bars.
    axes.set_xlim(1.2 * lowest, 1.6 * max(longest, 0.01))
    for place, stats in found:
        mean, sd = stats["mean"], stats["sd"] or 0.0
        axes.barh(place, mean, 0.36, color=_BAR, zorder=2)
        if sd:
            axes.errorbar(
                mean, place, xerr=sd, fmt="none", color=INK, capsize=3, elinewidth=1.2, zorder=3
            )
        axes.annotate(
            cell(stats, column),
            (mean + sd, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            zorder=4,
        )


def _legend(figure: Figure, rows: list[Json], guess: float | None) -> None:
    from matplotlib.lines import Line2D

    done = [row for row in rows if row["error"] is None]
    keys = [
        Line2D([], [], color=m.colour, marker=m.marker, linestyle="none", label=m.label)
        for m in _MARKS
        if any(row[m.key]["mean"] is not None for row in done)
    ]
    if guess is not None:
        dots: Any = (0, (1.5, 2))
        keys.append(Line2D([], [], color=MUTED, linestyle=dots, label="random guess"))
    if keys:
        figure.legend(
            handles=keys, loc="outside lower left", ncols=len(keys), frameon=False, fontsize=10
        )
