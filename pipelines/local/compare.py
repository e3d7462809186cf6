"""Several variants through the local pipeline, one after the other, then side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from percmae.config.load import VARIANTS
from percmae.errors import Interrupted, PercmaeError, UserError
from percmae.report.compare import Compared
from percmae.report.compare import compare as side_by_side
from pipelines.local.console import Console
from pipelines.local.options import RunOptions
from pipelines.local.run import find_data, fork_server_for, open_store, run, settled


def compare(variants: Sequence[str] | None, options: RunOptions) -> dict[str, Any]:
    """Run the pipeline for each variant and write ``<to>/[<tag>_]compare/``.

    variants: names in the order of the table; None for all. options: the same for every variant;
    what is finished in the store is reused. Returns the content of compare.json
    (:func:`percmae.report.compare.compare`), in which the row of a variant that failed says why:
    the others are run all the same, and :func:`failures` raises in the end.

    Raises UserError for bad input before anything is started, Interrupted after Ctrl-C; the same
    call goes on from where it was stopped.
    """
    variants = _chosen(variants)
    for variant in variants:
        options.check(variant)
    console = Console()
    # A source that cannot be had is no variant's failure, and all have the same one.
    options = settled(options, console)
    find_data(options)
    entries = []
    with (
        open_store(options.store, console) as store,
        fork_server_for(options.placement) as server,
    ):
        options = replace(options, store=store)
        for number, variant in enumerate(variants, start=1):
            console.line("compare", f"{variant} ({number} of {len(variants)})")
            try:
                outcome = run(variant, options, server)
            except Interrupted:
                raise
            except PercmaeError as error:
                console.line("compare", f"{variant} failed: {error}")
                entries.append(Compared(variant, error=str(error)))
            else:
                entries.append(Compared(variant, [each["uri"] for each in outcome.report["runs"]]))
        tag = options.tag
        folder = Path(options.to).resolve() / (f"{tag}_compare" if tag else "compare")
        return side_by_side(entries, str(folder))


def failures(document: dict[str, Any]) -> None:
    """Raise PercmaeError when a variant of a comparison has failed."""
    rows = document["rows"]
    failed = [row["variant"] for row in rows if row["error"] is not None]
    if failed:
        raise PercmaeError(
            f"{len(failed)} of {len(rows)} variants failed: {', '.join(failed)}; the same command "
            "tries them again and reuses the others"
        )


def _chosen(variants: Sequence[str] | None) -> list[str]:
    chosen = list(VARIANTS if variants is None else variants)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(f"variants {','.join(chosen)}: give one or more different ones")
    return chosen
