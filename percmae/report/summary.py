"""The result as a plain-text table for the terminal."""

from __future__ import annotations

import textwrap

from percmae.report.stats import Json, points, spread


def summary_table(report: Json) -> str:
    """What ``make run`` prints at the end: aligned rows, mean ± sample standard deviation.

    report: what :func:`percmae.report.report` returned, or report.json read back. Percentages;
    the last column has each seed's top-1. No newline at the end.
    """
    head = ("", "top-1 %", "top-5 %", "top-1 of each seed")
    rows = [head, *(_cells(row) for row in report["table"])]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [_title(report), ""]
    for row in rows:
        label, top1, top5, seeds = row
        cells = (label.ljust(widths[0]), top1.ljust(widths[1]), top5.ljust(widths[2]), seeds)
        lines.append("   ".join(cells).rstrip())
    if len(rows) == 1:
        missing = "No classifier has been evaluated yet."
        lines[-1] = missing if report["labelled"] else "The images have no labels."
    lines += [_reconstruction(report), *_rank(report), ""]
    verdict = report["verdict"]
    goals = [goal["text"] for goal in report["goals"]]
    for sentence in [verdict["answer"], *goals, *verdict["notes"], *report["missing"]]:
        lines += textwrap.wrap(sentence, 98, subsequent_indent="  ")
    return "\n".join(lines)


def _title(report: Json) -> str:
    data, seeds = report["data"], report["seeds"]
    parts = [
        report["name"],
        f"variant {report['variant']}",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
    ]
    if data["samples"].get("test"):
        of = f"of {data['classes']} classes" if data["classes"] else "without labels"
        parts.append(f"{data['samples']['test']:,} test images {of}")
    return " · ".join(parts)


def _cells(row: Json) -> tuple[str, str, str, str]:
    seeds = " ".join(f"{100 * value:5.1f}" for value in row["top1"]["values"])
    return row["label"], _aligned(row["top1"]), _aligned(row["top5"]), seeds


def _aligned(stats: Json) -> str:
    """Decimal points under each other, up to 100.0; – where there is no figure."""
    if stats["mean"] is None:
        return "    –"
    mean, _, sd = points(stats).partition(" ")
    return f"{mean:>5} {sd}".rstrip()


def _reconstruction(report: Json) -> str:
    found = report["reconstruction"]
    if found["psnr"]["mean"] is None:
        return "\nReconstruction: not evaluated"
    told = f"\nReconstruction: PSNR {spread(found['psnr'], 1)} dB, SSIM {spread(found['ssim'], 3)}"
    if found["distance"]["mean"] is not None:
        told += f", perceptual distance {spread(found['distance'], 3)}"
    return told


def _rank(report: Json) -> list[str]:
    found = report["features"]
    if found["rankme"]["mean"] is None:
        return []
    before = spread(found["untrained_rankme"], 1)
    return [
        f"Effective rank (RankMe): {spread(found['rankme'], 1)}, before pretraining {before}, of "
        f"{found['dimensions']} dimensions"
    ]
