"""The whole pipeline on this machine, from sample images to a report: what ``make run`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from percmae.data.imagenet import DEVKIT_NAME, TRAIN_NAME, VAL_NAME
from percmae.data.sample import SOURCES, SampleArchives, make_sample_archives
from percmae.data.sample_sources import fingerprint
from percmae.errors import UserError
from percmae.stages import steps as stages
from percmae.stages.launch import JOB_STAGES, LOCAL
from percmae.storage import StorePath
from pipelines.local.console import Console

if TYPE_CHECKING:
    from pipelines.local import warm
    from pipelines.local.tasks import Step

HOME = ".percmae"
HERE = stages.Launch()
ARCHIVES = (TRAIN_NAME, VAL_NAME, DEVKIT_NAME)
"""Training images, validation images and development kit, under the names they come with."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished pipeline: the content of report.json, the steps as they ended, the files here."""

    report: dict[str, Any]
    steps: list[Step]
    html: Path
    json: Path


def run(
    variant: str = "mae",
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
    launch: stages.Launch = HERE,
    server: warm.Server | None = None,
) -> Outcome:
    """Run the DAG through ``kfp.local`` on sample images and copy its report to ``<to>/<name>/``.

    source: images as for :func:`percmae.data.sample.make_sample_archives`. overrides: as the
    pipeline takes them (``optim.epochs=3``, ``probe.optim.epochs=5``, ``all.data.workers=2``).
    store: where datasets and runs are kept; by default an embedded S3 server below ``.percmae``
    (or ``PERCMAE_HOME``) that runs as long as this does. What is there already is reused.
    archives: folder or ``s3://`` prefix with the ILSVRC archives, instead of sample images;
    dataset: the name they are kept under. server: from :func:`server_for`, where several runs share
    one. launch: where the training is done; a cluster needs a
    ``store`` that its pods reach too.

    Raises UserError for bad input before anything is started, StepError for a step that failed,
    Interrupted after Ctrl-C; the same call goes on from where it was stopped.
    """
    name = check(variant, tag, recipe, size, seeds, overrides)
    check_launch(launch, store)
    console, folder = Console(), Path(to) / name
    dataset, (train, val, devkit) = find_archives(source, archives, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.nullcontext(server) if server else server_for(launch) as forks,
        open_store(store, console) as base,
        (folder / "pipeline.log").open("w", buffering=1) as log,
    ):
        steps = _run_dag(
            {
                "archive_train": train,
                "archive_val": val,
                "archive_devkit": devkit,
                "dataset": dataset,
                "store": base,
                "variant": variant,
                "recipe": recipe,
                "size": size,
                "tag": tag,
                "seeds": list(seeds),
                "overrides": list(overrides),
                "fine_tune": fine_tune,
                "launcher": launch.launcher,
                "train_image": launch.image,
                "nodes": launch.nodes,
                "gpus": launch.gpus,
                "job": list(launch.job),
            },
            console,
            log,
            forks,
        )
        made = StorePath(stages.report_folder(base, name))
        for file in ("report.html", "report.json"):
            (made / file).read_file(folder / file)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    html, figures = (folder / "report.html").resolve(), (folder / "report.json").resolve()
    return Outcome(report, steps, html, figures)


def check(
    variant: str,
    tag: str,
    recipe: str,
    size: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
) -> str:
    """The name of the runs; raises UserError for what could not work, before anything starts."""
    from percmae.config import load_config

    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds {list(seeds)}: give one or more different whole numbers")
    config = stages.pretrain_config(variant, recipe, size, tag, overrides, seeds[0])
    for stage in stages.TRAININGS[1:]:
        chosen = stages.overrides_for(stage, overrides)
        load_config(variant, recipe, stage, overrides=chosen, size=size or None)
    return config.run_name


def check_launch(launch: stages.Launch, store: str | None) -> None:
    """Raises UserError for a launcher that could not work, before anything starts."""
    for stage in JOB_STAGES:
        launch.settings(stage)
    if launch.launcher != LOCAL and store is None:
        raise UserError(
            f"--launcher {launch.launcher} needs --store: pods cannot reach the embedded store of "
            "this machine; give an s3:// prefix, with AWS_ENDPOINT_URL and keys for it here"
        )


def find_archives(
    source: str, archives: str | None, dataset: str | None
) -> tuple[str, tuple[str, str, str]]:
    """Name of a dataset and its three archives: given ones, or those of sample images.

    Raises DataError for a source that is not known or cannot be had.
    """
    if archives is None:
        name, made = sample_archives(source)
        return dataset or name, (str(made.train), str(made.val), str(made.devkit))
    folder = StorePath(archives)
    train, val, devkit = ((folder / file).uri for file in ARCHIVES)
    return dataset or "imagenet", (train, val, devkit)


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
    from percmae.local_store import server as local_store

    with local_store.running() as server:
        console.line("store", f"{server.uri} at {server.endpoint}")
        before = {name: os.environ.get(name) for name in (*server.environ, *_OVERRULING)}
        os.environ.update(server.environ)
        for name in _OVERRULING:
            os.environ.pop(name, None)
        try:
            yield server.uri
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


# Settings of another store that would be taken before those of the embedded one.
_OVERRULING = ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "PERCMAE_STORE_CONFIG")


def server_for(launch: stages.Launch) -> warm.Server:
    """A process to fork the steps of runs from: it imports what trains, unless a job does that."""
    from pipelines.local import warm
    from pipelines.local.tasks import step_server

    return step_server(warm.TRAINING if launch.launcher == LOCAL else ())


def _run_dag(
    arguments: dict[str, Any], console: Console, log: TextIO, server: warm.Server
) -> list[Step]:
    from pipelines.local.tasks import run_pipeline
    from pipelines.train import train_pipeline

    return run_pipeline(train_pipeline(), arguments, console, log, server)


def steps_table(steps: Sequence[Step]) -> str:
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
    return "\n".join(lines)


def _seconds(step: Step) -> str:
    return f"({step.seconds:.0f})" if step.reused else f"{step.seconds:.0f}"
