"""The whole pipeline on this machine, from sample images to a report: what ``make run`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from percmae.data.archives import ARCHIVES
from percmae.data.sample import SOURCES, SampleArchives, make_sample_archives
from percmae.data.sample_sources import DEFAULT_SOURCE, LAST_SOURCE, fingerprint
from percmae.errors import DataError
from percmae.ingest.cores import usable_cores
from percmae.local_store import server as local_store
from percmae.report import FIGURES, PAGE
from percmae.runs.files import LAST_RESORT
from percmae.stages.check import pretrain_config
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.steps import dataset_name, report_folder
from percmae.storage import StorePath
from pipelines.local.console import Console
from pipelines.local.options import RunOptions
from pipelines.local.tasks import FinishedStep, fork_server, run_pipeline
from pipelines.local.warm import TRAINING_MODULES, ForkServer

HOME = ".percmae"


@dataclasses.dataclass(frozen=True)
class PipelineOutcome:
    """A finished pipeline: the content of report.json, the steps as they ended, the files here."""

    report: dict[str, Any]
    steps: list[FinishedStep]
    html: Path
    json: Path


def run(variant: str, options: RunOptions, server: ForkServer | None = None) -> PipelineOutcome:
    """Run the DAG through ``kfp.local`` and copy its report to ``<to>/<name>/``.

    What is in the store already is reused. server: from :func:`fork_server_for`, where several runs
    share one.

    Raises UserError for bad input before anything is started, StepError for a step that failed,
    Interrupted after Ctrl-C; the same call goes on from where it was stopped.
    """
    name = options.check(variant)
    console, folder = Console(), Path(options.to) / name
    options = settled(options, console)
    dataset, data = find_data(options)
    with (
        contextlib.nullcontext(server) if server else fork_server_for(options.placement) as forks,
        open_store(options.store, console) as store,
    ):
        steps = run_dag(
            "train",
            {
                **data,
                "dataset": dataset,
                "store": store,
                "variant": variant,
                "recipe": options.recipe,
                "size": options.size,
                "tag": options.tag,
                "seeds": list(options.seeds),
                "overrides": [*_all_cores(variant, options), *options.overrides],
                "fine_tune": options.fine_tune,
                # Two at a time, and the longest first: none is left alone at the end.
                "label_fractions": sorted(options.label_fractions, reverse=True),
            },
            options.placement,
            folder,
            console,
            forks,
        )
        stored = StorePath(report_folder(store, name))
        for file in (PAGE, FIGURES):
            (stored / file).read_file(folder / file)
    html, figures = (folder / PAGE).resolve(), (folder / FIGURES).resolve()
    return PipelineOutcome(json.loads(figures.read_text(encoding="utf-8")), steps, html, figures)


def settled(options: RunOptions, console: Console) -> RunOptions:
    """The same with a source, where none was chosen: the default, or the last resort.

    Of the last resort the console says so, and the dataset's name, by which the report knows it.
    """
    if options.source or options.images or options.archives:
        return options
    try:
        sample_archives(DEFAULT_SOURCE)
    except DataError as error:
        last = LAST_SOURCE.upper()
        console.line(
            "sample",
            f"{DEFAULT_SOURCE.upper()} COULD NOT BE HAD, SO THIS RUN TAKES {last} AS THE LAST "
            f"RESORT: FEW AND SIMPLE IMAGES, WHOSE FIGURES SAY LITTLE ABOUT THE METHOD. {error}",
        )
        name = (options.dataset or LAST_SOURCE) + LAST_RESORT
        return dataclasses.replace(options, source=LAST_SOURCE, dataset=name)
    return dataclasses.replace(options, source=DEFAULT_SOURCE)


def find_data(options: RunOptions) -> tuple[str, dict[str, str]]:
    """Name of a dataset, and the pipeline's parameters that say where its images come from.

    Raises DataError for a source that is not known or cannot be had.
    """
    if options.images:
        data = {"images": StorePath(options.images).uri, "labels": options.labels}
        return options.dataset or dataset_name(options.images), data
    if options.archives:
        folder = StorePath(options.archives)
        name, files = "imagenet", {key: (folder / file).uri for key, file in ARCHIVES.items()}
    else:
        assert options.source is not None, "settled before"
        name, samples = sample_archives(options.source)
        files = {key: str(getattr(samples, key)) for key in ARCHIVES}
    return options.dataset or name, {f"archive_{key}": file for key, file in files.items()}


def sample_archives(source: str) -> tuple[str, SampleArchives]:
    """Name of a source's dataset, and its archives, made unless they are there.

    Raises DataError for a source that is not known or cannot be had.
    """
    home = Path(os.environ.get("PERCMAE_HOME") or HOME)
    dataset = _dataset_name(source)
    # Read where they are: the store need not hold the images twice.
    return dataset, make_sample_archives(home / "samples" / dataset, source)


def _dataset_name(source: str) -> str:
    """Name of a source's dataset; a folder's has a mark that changes with its images."""
    if source in SOURCES:
        return source
    mark = fingerprint(source)[:8]
    return f"{Path(source).resolve().name}-{mark}"


@contextlib.contextmanager
def open_store(uri: str | None, console: Console) -> Iterator[str]:
    """The store's URI; the steps inherit its address and keys through the environment.

    uri: a store that is there; None starts the embedded server for as long as the block lasts.
    """
    if uri is not None:
        base = StorePath(uri)
        base.prepare()
        yield base.uri
        return
    with local_store.running() as store:
        console.line("store", f"{store.uri} at {store.endpoint}")
        with store.in_environment():
            yield store.uri


def _all_cores(variant: str, options: RunOptions) -> list[str]:
    """With one seed its pretraining and probes have them all: nothing else runs beside these."""
    if len(options.seeds) != 1 or options.placement.launcher != LOCAL:
        return []
    words = (options.recipe, options.size, options.tag, options.overrides)
    if pretrain_config(variant, *words, options.seeds[0]).trainer.threads is not None:
        return []
    return [f"{stage}.trainer.threads={usable_cores()}" for stage in ("pretrain", "probe")]


def fork_server_for(placement: Placement) -> ForkServer:
    """A process to fork the steps of runs from: it imports what trains, unless a job does that."""
    return fork_server(TRAINING_MODULES if placement.launcher == LOCAL else ())


def run_dag(
    which: str,
    arguments: dict[str, Any],
    placement: Placement,
    folder: Path,
    console: Console,
    server: ForkServer,
) -> list[FinishedStep]:
    """Run a pipeline with these arguments; its log is ``<folder>/pipeline.log``.

    which: of pipelines.PIPELINES; raises as :func:`pipelines.local.tasks.run_pipeline`.
    """
    # Imports kfp: after all checks, which are quick and need none.
    from pipelines.which import made

    where = {
        "launcher": placement.launcher,
        "train_image": placement.image,
        "nodes": placement.nodes,
        "gpus": placement.gpus,
        "job": list(placement.job),
    }
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "pipeline.log"
    with log_file.open("w", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
        return run_pipeline(made(which), {**arguments, **where}, console, log, server)


def steps_table(steps: Sequence[FinishedStep]) -> str:
    """Seconds of each step, a column a seed; in brackets where a finished run was reused."""
    seeds = sorted({step.seed for step in steps if step.seed is not None})
    cells = {(step.name, step.seed): _seconds(step) for step in steps}
    names = list(dict.fromkeys(step.name for step in steps))
    width = max(len(name) for name in names)
    head = "".join(f"{f'seed {seed}':>12}" for seed in seeds)
    lines = [f"{'Seconds':<{width}}{head}"]
    for name in names:
        row = "".join(f"{cells.get((name, seed), ''):>12}" for seed in seeds)
        whole = f"{cells[name, None]:>12}" if (name, None) in cells else row
        lines.append(f"{name:<{width}}{whole}".rstrip())
    if any(step.reused for step in steps):
        lines.append("(n): unchanged since an earlier run, reused")
    lines += [f"–: skipped: {why}" for why in sorted({s.skipped for s in steps if s.skipped})]
    return "\n".join(lines)


def _seconds(step: FinishedStep) -> str:
    if step.skipped is not None:
        return "–"
    return f"({step.seconds:.0f})" if step.reused else f"{step.seconds:.0f}"
