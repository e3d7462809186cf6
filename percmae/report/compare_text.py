"""A comparison as text: for the terminal, and as Markdown."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from percmae.report.stats import Json, points, spread


class Column(NamedTuple):
    """A figure of a row: its key and heading; ``digits`` None for a share, shown in %.

    mean_only: without the spread over seeds.
    """

    key: str
    head: str
    digits: int | None
    mean_only: bool = False


COLUMNS = (
    Column("probe", "probe %", None),
    Column("probe_untrained", "untrained %", None),
    Column("knn", "k-NN %", None),
    Column("finetune", "fine-tuned %", None),
    Column("rankme", "RankMe", 1),
    Column("psnr", "PSNR dB", 1, mean_only=True),
    Column("ssim", "SSIM", 3, mean_only=True),
    Column("distance", "distance", 3, mean_only=True),
    Column("step_seconds", "s/step", 3, mean_only=True),
    Column("steps", "steps", 0, mean_only=True),
)
_PICTURED = {
    "picture": "Accuracy, fidelity and cost of each variant",
    "learning": "How the encoders improve, over images seen and over time",
    "reconstructions": "What each variant makes of the same images",
}
_ACCURACIES = ("probe", "probe_untrained", "knn", "finetune")
_WIDTH = 98


def compare_table(document: Json) -> str:
    """What ``percmae compare`` prints: a row a variant. No newline at the end.

    document: what :func:`percmae.report.compare.compare` returned, or compare.json read back.
    """
    columns = _columns(document)
    rows = [("variant", *(column.head for column in columns))]
    rows += [_cells(row, columns) for row in document["rows"]]
    whole = [row for row in rows if len(row) > 2]
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[i]) for row in whole) for i in range(1, len(columns) + 1)]
    lines = [*_wrapped(_budget(document)), ""]
    for row in rows:
        cells = row[1:] if row not in whole else map(str.rjust, row[1:], widths)
        lines.append("  ".join([row[0].ljust(first), *cells]).rstrip())
    lines += ["", *_wrapped(" ".join(notes(document)))]
    return "\n".join(lines)


def markdown(document: Json) -> str:
    """The same as a Markdown page, with the picture where there is one."""
    columns = _columns(document)
    head = ["variant", *(column.head for column in columns)]
    lines = ["# Variants compared", "", _budget(document), ""]
    lines += [_markdown_row(head), _markdown_row(["---", *("---:" for _ in columns)])]
    for row in document["rows"]:
        cells = [cell.replace("|", "\\|") for cell in _cells(row, columns)]
        # A failed variant's line stands in the first cell of figures; the others stay empty.
        lines.append(_markdown_row(cells + [""] * (len(head) - len(cells))))
    lines += ["", *(f"- {note}" for note in notes(document))]
    for key, what in _PICTURED.items():
        if key in document["files"]:
            lines += ["", f"![{what}]({document['files'][key].rpartition('/')[2]})"]
    return "\n".join(lines) + "\n"


def notes(document: Json) -> list[str]:
    """How the figures are meant, one sentence or two each."""
    tested = document["samples"].get("test")
    images = f"the {tested:,} test images" if tested else "the test images"
    judged = [
        f"Probe, untrained and fine-tuned: top-1 on {images}, mean ± sample standard deviation "
        "over seeds; untrained is the same linear probe on the encoder before its pretraining.",
        "k-NN: top-1 on the validation slice at the last step, no training.",
    ]
    ranked = [
        f"RankMe: effective rank of the features of {images}, by which the variants are ordered: "
        "the images have no labels. It says how much of its space a representation uses, not what "
        "for."
    ]
    lines = [
        *(judged if document["labelled"] else ranked),
        "PSNR, SSIM and perceptual distance (less is better; LPIPS without learned weights, by "
        "EfficientNet-Lite2, which no loss uses): reconstructions of test images, visible patches "
        "pasted in.",
        "s/step: wall-clock seconds a pretraining step, validation included, beside whatever else "
        "the machine did.",
    ]
    if document["random_guess"] is not None:
        lines.append(f"A random guess is right in {100 * document['random_guess']:.1f} %.")
    if document["differences"]:
        lines.append(
            "Not on one budget, so figures are not directly comparable: "
            f"{', '.join(document['differences'])}."
        )
    return lines


def _budget(document: Json) -> str:
    """The common budget in one line."""
    samples, parts = document["samples"], [f"{k} {v}" for k, v in document["budget"].items()]
    if samples:
        counts = f"{samples['train']:,} training" if "train" in samples else ""
        counts += f", {samples['val']:,} validation" if "val" in samples else ""
        of = f" of {document['classes']} classes" if document["classes"] else ""
        test = f"{samples['test']:,} test images{of}"
        parts.append(f"{counts} and {test}" if counts else test)
    return " · ".join(parts) if parts else "No variant has figures."


def _columns(document: Json) -> list[Column]:
    """Accuracies, or what stands for them without labels, and the rest."""
    absent = ("rankme",) if document["labelled"] else _ACCURACIES
    return [column for column in COLUMNS if column.key not in absent]


def _cells(row: Json, columns: list[Column]) -> tuple[str, ...]:
    """Variant and figures; of a failed variant, the line that says why."""
    if row["error"] is not None:
        return (row["variant"], f"failed: {row['error']}")
    return (row["variant"], *(cell(row[column.key], column) for column in columns))


def cell(stats: Json, column: Column) -> str:
    """One figure as the table shows it; – where there is none."""
    if stats["mean"] is None:
        return "–"
    if column.mean_only:
        stats = {**stats, "sd": None}
    if column.digits is None:
        return points(stats)
    return f"{stats['mean']:,.0f}" if column.digits == 0 else spread(stats, column.digits)


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False)
