"""Several variants through the local pipeline, one after the other, then side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from percmae.errors import Interrupted, PercmaeError, UserError
from percmae.report.compare import Entry
from percmae.report.compare import compare as side_by_side
from percmae.stages.placement import Placement
from pipelines.local.console import Console
from pipelines.local.run import (
    HERE,
    check,
    check_placement,
    find_archives,
    open_store,
    run,
    server_for,
)


def compare(
    variants: Sequence[str] | None = None,
    tag: str = "",
    recipe: str = "demo",
    source: str = "mnist",
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    to: str | Path = "runs",
    *,
    size: str = "",
    fine_tune: bool = True,
    store: str | None = None,
    archives: str | None = None,
    dataset: str | None = None,
    placement: Placement = HERE,
) -> dict[str, Any]:
    """Run the pipeline for each variant and write ``<to>/[<tag>_]compare/``.

    variants: names in the order of the table; None for all. The rest as for
    :func:`pipelines.local.run`, and the same for every variant; what is finished in the store is
    reused. Returns the content of compare.json (:func:`percmae.report.compare.compare`), in which
    the row of a variant that failed says why: the others are run all the same, and
    :func:`failures` raises in the end.

    Raises UserError for bad input before anything is started, Interrupted after Ctrl-C; the same
    call goes on from where it was stopped.
    """
    variants = _chosen(variants)
    for variant in variants:
        check(variant, tag, recipe, size, seeds, overrides)
    check_placement(placement, store)
    find_archives(source, archives, dataset)  # a source that cannot be had is no variant's failure
    console = Console()
    entries = []
    with open_store(store, console) as base, server_for(placement) as server:
        for number, variant in enumerate(variants, start=1):
            console.line("compare", f"{variant} ({number} of {len(variants)})")
            try:
                outcome = run(
                    variant,
                    tag,
                    recipe,
                    source,
                    seeds,
                    overrides,
                    to,
                    size=size,
                    fine_tune=fine_tune,
                    store=base,
                    archives=archives,
                    dataset=dataset,
                    placement=placement,
                    server=server,
                )
            except Interrupted:
                raise
            except PercmaeError as error:
                console.line("compare", f"{variant} failed: {error}")
                entries.append(Entry(variant, error=str(error)))
            else:
                entries.append(Entry(variant, [made["uri"] for made in outcome.report["runs"]]))
        folder = Path(to).resolve() / (f"{tag}_compare" if tag else "compare")
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
    from percmae.config.load import VARIANTS

    chosen = list(VARIANTS if variants is None else variants)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(f"variants {','.join(chosen)}: give one or more different ones")
    return chosen
