"""Line charts as inline SVG whose colours follow the page's colour scheme."""

from __future__ import annotations

import io
import json
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_POINTS = 1000
"""Points drawn of one curve; longer ones are averaged over equal stretches of steps."""

# matplotlib draws in these; the page replaces each by a variable of its style sheet.
_INKS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "blue": "#040404",
    "orange": "#050505",
    "green": "#060606",
    "grey": "#070707",
}
# For classes; told apart on light and dark ground (matplotlib's own ten).
_CLASSES = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Series:
    """One curve: its seed picks the dash, ``colour`` one of blue, orange, green, grey."""

    label: str
    seed: int
    points: list[tuple[float, float]]
    colour: str


def line_chart(
    name: str,
    alt: str,
    series: list[Series],
    x_label: str,
    y_label: str,
    percent: bool = False,
    guess: float | None = None,
    shares: bool = False,
) -> str:
    """SVG text of curves; ``name`` makes its element ids unique in the page.

    percent: values are shares to be shown as %; guess: height of the random-guess line, in the
    values' unit; shares: the x axis is of shares in (0, 1], each as many times the one before.
    """
    with _figure(4.9, 3.0) as (figure, axes):
        dash = _dashes({item.seed for item in series})
        for item in series:
            x, y = _thin(item.points)
            axes.plot(
                x,
                y,
                color=_INKS[item.colour],
                linestyle=dash[item.seed],
                linewidth=1.6,
                marker="o" if len(x) < 12 else None,
                markersize=3,
            )
        if guess is not None:
            axes.axhline(guess, color=_INKS["muted"], linewidth=1.1, linestyle=(0, (2, 3)))
        _axis_style(axes, [v for item in series for _, v in item.points], percent)
        if shares:
            ticks = sorted({x for item in series for x, _ in item.points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, series, dash, guess is not None)
        return _svg(figure, name, alt, None if shares else (axes, percent))


def scatter(
    name: str,
    alt: str,
    points: Sequence[Sequence[float]],
    labels: Sequence[int],
    classes: Sequence[str],
) -> str:
    """SVG text of points (x, y), coloured by class; classes: names, at most as many as colours.

    The axes have no unit, so they are not drawn.
    """
    with _figure(4.9, 4.2) as (figure, axes):
        for number, (text, ink) in enumerate(zip(classes, _CLASSES, strict=False)):
            mine = [point for point, label in zip(points, labels, strict=True) if label == number]
            if mine:
                x, y = zip(*mine, strict=True)
                axes.plot(x, y, "o", color=ink, markersize=3.2, markeredgewidth=0, label=text)
        axes.set_axis_off()
        figure.legend(
            loc="outside lower center",
            ncols=5,
            frameon=False,
            fontsize=9,
            handletextpad=0.2,
            columnspacing=0.8,
        )
        return _svg(figure, name, alt)


def quiet_matplotlib() -> None:
    """Before its import: without a home it says much about its cache, and works all the same."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of inches, away from pyplot's global state; text stays text, ids are stable."""
    quiet_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "percmae",
        "font.size": 11,
        "text.parse_math": False,
        "text.color": _INKS["ink"],
        "axes.edgecolor": _INKS["line"],
        "axes.labelcolor": _INKS["muted"],
        "xtick.color": _INKS["line"],
        "ytick.color": _INKS["line"],
        "xtick.labelcolor": _INKS["muted"],
        "ytick.labelcolor": _INKS["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        yield figure, axes


def _axis_style(axes: Axes, values: list[float], percent: bool) -> None:
    axes.grid(axis="y", color=_INKS["line"], linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    if percent:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    elif values and min(values) > 0 and max(values) / min(values) > 30:
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value % 1 == 0 else "")


def _dashes(seeds: set[int]) -> dict[int, Any]:
    """A dash pattern for each seed; with more seeds than patterns all are drawn alike."""
    few = len(seeds) <= len(_DASHES)
    return {seed: _DASHES[i if few else 0] for i, seed in enumerate(sorted(seeds))}


def _legend(figure: Figure, series: list[Series], dash: dict[int, Any], guess: bool) -> None:
    """First row: colours, which say what a curve is; second row: dashes, which say whose."""
    first = [
        _key(label, colour, "-", 2.4)
        for label, colour in {item.label: item.colour for item in series}.items()
    ]
    if guess:
        first.append(_key("random guess", "muted", (0, (2, 3)), 1.1))
    several = len(set(dash.values())) > 1
    second = [_key(f"seed {seed}", "muted", s, 1.6) for seed, s in dash.items()] if several else []
    columns = max(len(first), len(second))
    rows = [
        row + [_key(" ", "none", "", 0)] * (columns - len(row)) for row in (first, second) if row
    ]
    figure.legend(
        # matplotlib fills a legend column by column.
        handles=[row[column] for column in range(columns) for row in rows],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=2.0,
        columnspacing=1.2,
        borderaxespad=0.0,
    )


def _key(label: str, colour: str, dash: Any, width: float) -> Line2D:
    from matplotlib.lines import Line2D

    ink = _INKS.get(colour, colour)
    return Line2D([], [], color=ink, linestyle=dash, linewidth=width, label=label)


def _thin(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS, each the mean of neighbouring ones."""
    size = -(-len(points) // MAX_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    x = [sum(p[0] for p in group) / len(group) for group in groups]
    y = [sum(p[1] for p in group) / len(group) for group in groups]
    return x, y


def _svg(figure: Figure, name: str, alt: str, zoomed: tuple[Axes, bool] | None = None) -> str:
    """The figure as one ``<svg>`` element, labelled, its ids prefixed, its inks variables.

    zoomed: axes that the page's script may zoom into, and whether their values are shares.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(buffer.getvalue())
    # Metadata, and a style sheet that would apply to the whole page.
    for tag in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{tag}"):
            if tag == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        _adapt(element, name)
    # The page sizes it; without width and height it keeps its shape by the view box.
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    if zoomed:
        root.set("data-plot", json.dumps(_plot(figure, *zoomed)))
    return ET.tostring(root, encoding="unicode")


def _plot(figure: Figure, axes: Axes, percent: bool) -> dict[str, Any]:
    """Where the axes lie in the picture, in points from its upper left, and what they span."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    box = axes.get_position()
    return {
        "left": box.x0 * width,
        "right": box.x1 * width,
        "top": (1 - box.y1) * height,
        "bottom": (1 - box.y0) * height,
        "x": axes.get_xlim(),
        "y": axes.get_ylim(),
        "log_x": axes.get_xscale() == "log",
        "log_y": axes.get_yscale() == "log",
        "percent": percent,
    }


def _adapt(element: ET.Element, name: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    for key, value in list(element.attrib.items()):
        if key.endswith("href") and value.startswith("#"):
            value = f"#{name}-{value[1:]}"
        value = re.sub(r"url\(#", f"url(#{name}-", value)
        if key == "style":
            for variable, ink in _INKS.items():
                value = value.replace(ink, f"var(--{variable})")
            # The page's own font; matplotlib's is seldom installed.
            value = re.sub(r"font-family: [^;]*;?", "", value)
        element.set(key, value)
