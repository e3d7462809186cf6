"""The retrain pipeline on this machine: what ``percmae retrain`` does."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from percmae.ingest.cores import usable_cores
from percmae.stages.check import pretrain_config
from percmae.stages.placement import LOCAL
from percmae.stages.retrain import NOTHING_NEW
from percmae.stages.steps import dataset_name
from percmae.storage import StorePath
from pipelines.local.console import Console
from pipelines.local.options import RetrainOptions
from pipelines.local.run import fork_server_for, open_store, run_dag
from pipelines.local.tasks import FinishedStep
from pipelines.local.warm import ForkServer


@dataclasses.dataclass(frozen=True)
class Retrained:
    """What came of it.

    why: in a sentence, what was decided or that there was nothing new; promoted: None where nothing
    was decided; page: address of the decision's page, html: a copy of it here; steps: as they
    ended.
    """

    why: str
    promoted: bool | None
    page: str | None
    html: Path | None
    steps: list[FinishedStep]


def retrain(options: RetrainOptions, server: ForkServer | None = None) -> Retrained:
    """Run the retrain pipeline through ``kfp.local``; log and page are in ``<to>/<model>/``.

    server: as of :func:`pipelines.local.run.run`, which says what is raised.
    """
    options.check()
    console = Console()
    with (
        contextlib.nullcontext(server) if server else fork_server_for(options.placement) as forks,
        open_store(options.store, console) as store,
    ):
        arguments = {
            "images": StorePath(options.images).uri,
            "model": options.model,
            "labels": options.labels,
            "dataset": options.dataset or dataset_name(options.images),
            "store": store,
            "start": options.start,
            "rule": list(options.rule),
            "variant": options.variant,
            "recipe": options.recipe,
            "size": options.size,
            "tag": options.tag,
            "seed": options.seed,
            "schedule": options.schedule,
            "overrides": [*_all_cores(options), *options.overrides],
        }
        folder = Path(options.to) / options.model
        steps = run_dag("retrain", arguments, options.placement, folder, console, forks)
        found = {step.name: step.artifacts for step in steps}
        if (decided := found.get("judge")) is None:
            return Retrained(found["look"]["dataset"][NOTHING_NEW], None, None, None, steps)
        page, html = decided["page"], (folder / "decision.html").resolve()
        StorePath(page["uri"]).read_file(html)
    return Retrained(page["why"], page["promoted"], page["uri"], html, steps)


def _all_cores(options: RetrainOptions) -> list[str]:
    """Each training has them all: nothing else runs beside it."""
    words = (options.recipe, options.size, options.tag, options.overrides)
    config = pretrain_config(options.variant, *words, options.seed)
    if options.placement.launcher != LOCAL or config.trainer.threads is not None:
        return []
    return [f"trainer.threads={usable_cores()}"]
