"""The jobs under ``k8s/``: files for ``kubectl apply``, rendered from the same builder as launches.

    python -m percmae.jobs.manifests                       (make manifests: the committed files)
    python -m percmae.jobs.manifests --to mine image=registry/percmae-train@sha256:… kind=job

The first form takes no settings, so that what is committed follows from the code alone; where there
is kubectl it also writes each overlay as one file. The second writes the same jobs with any job
settings of your own.

A job launched by a pipeline has a name made of its work, so that a retry finds it. Here a person
types the name, so it is the file's: ``pretrain-mae`` lies in pretrain-mae.yaml and runs in pod
pretrain-mae-master-0. A job that was changed is deleted before it is applied again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from percmae.command import exit_code, parse
from percmae.config import load_config
from percmae.config.load import VARIANTS
from percmae.data.archives import ARCHIVES
from percmae.errors import UserError
from percmae.jobs.names import (
    BUCKET,
    DIGEST_ANNOTATION,
    KFP_NAMESPACE,
    KFP_SECRET,
    NAMESPACE,
    Object,
)
from percmae.jobs.overlays import MARK, RENDERED, write_overlays
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object, object_digest
from percmae.jobs.trainjob import training_runtime
from percmae.jobs.work import Work, command, training
from percmae.progress import warn
from percmae.storage import local_path

RUNTIME = "trainer/runtime.yaml"
KFP_ARCHIVES = "overlays/kfp/jobs/archives.yaml"
# Feature networks' weights are not downloaded in a cluster: `percmae import` puts them there.
VGG16 = f"perceptual.weights={BUCKET}/models/vgg16.safetensors"


@dataclass(frozen=True)
class Named(Work):
    """A Work whose job has the name of its file."""

    file: str = ""

    @property
    def name(self) -> str:
        return self.file


@dataclass(frozen=True)
class Folder:
    """One folder of jobs: for which machines, on which data, by which recipe.

    settings: of every job; pretraining: further ones of pretrainings; sample: whether a job makes
    the dataset of images that come with the image.
    """

    folder: str
    needs: str
    dataset: str
    recipe: str
    settings: dict[str, Any]
    pretraining: dict[str, Any]
    sample: bool = False


# Tags are the datasets' names, so that runs are called sample_mae and imagenet_mae.
FOLDERS = (
    Folder(
        folder="jobs",
        needs="a node with 2 CPU cores and 4 GiB to spare, no GPU; k8s/overlays/minimal",
        dataset="sample",
        recipe="demo",
        settings={"gpus": 0, "cpu": "1", "memory": "3Gi", "shm": "512Mi", "scratch": "4Gi"},
        pretraining={},
        sample=True,
    ),
    Folder(
        folder="overlays/gpu/jobs",
        needs="a node with one GPU; k8s/overlays/gpu",
        dataset="imagenet",
        recipe="mae",
        settings={"gpus": 1},
        pretraining={},
    ),
    Folder(
        folder="overlays/multi-node/jobs",
        needs="four nodes with eight GPUs each, Kueue; k8s/overlays/multi-node",
        dataset="imagenet",
        recipe="mae",
        settings={"gpus": 8, "queue": "percmae"},
        pretraining={"nodes": 4},
    ),
)


def render(place: Folder, overrides: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """``(file name, text)`` of each job of a place.

    overrides: job settings ``key=value``, stronger than the place's. Raises ConfigError for one
    that is none or cannot be.
    """
    for work in _works(place):
        values = {"namespace": NAMESPACE, **place.settings}
        if work.stage == "pretrain":
            values |= place.pretraining
        job = job_object(work, job_settings(overrides or (), work.stage, **values))
        if work.name == "sample":
            job = _with_archives(job)
        yield f"{work.name}.yaml", _text(place, work, job)


def write(root: Path, overrides: list[str] | None = None) -> list[Path]:
    """Write the jobs of every place below ``root`` and remove files no longer made; the paths.

    Only files that say they were rendered are removed. Raises UserError where ``root`` cannot be
    written.
    """
    written = []
    try:
        for place in FOLDERS:
            folder = root / place.folder
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in render(place, overrides):
                (folder / name).write_text(text, encoding="utf-8")
                written.append(folder / name)
            for old in folder.glob("*.yaml"):
                if old not in written and old.read_text(encoding="utf-8").startswith(MARK):
                    old.unlink()
        archives = root / KFP_ARCHIVES
        archives.parent.mkdir(parents=True, exist_ok=True)
        archives.write_text(_kfp_archives(overrides or []), encoding="utf-8")
        written.append(archives)
        runtime = root / RUNTIME
        runtime.parent.mkdir(parents=True, exist_ok=True)
        runtime.write_text(_runtime(overrides or []), encoding="utf-8")
        written.append(runtime)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}") from None
    return written


def _kfp_archives(overrides: list[str]) -> str:
    """Sample archives put where the pipeline looks for ImageNet's, in the store that KFP has."""
    work = _named(
        command("sample-data", "sample", "--out", f"{BUCKET}/archives", *SAMPLE), "sample-archives"
    )
    small = {"gpus": 0, "cpu": "1", "memory": "2Gi", "shm": "64Mi", "scratch": "4Gi"}
    store: dict[str, Any] = {"namespace": KFP_NAMESPACE, "store_secret": KFP_SECRET}
    settings = job_settings(overrides, work.stage, **small, **store)
    header = (
        f"{MARK}; do not edit.\n# The pipeline's own archives, for a first run beside Kubeflow "
        f"Pipelines.\n#\n#   kubectl apply -f k8s/{KFP_ARCHIVES}\n"
    )
    return header + _yaml(job_object(work, settings))


def _runtime(overrides: list[str]) -> str:
    """What TrainJobs (kind=trainjob runtime=percmae) take from the cluster."""
    settings = job_settings(overrides)
    header = (
        f"{MARK}; do not edit.\n# Needs Kubeflow Trainer 2; jobs take it by job setting "
        f"runtime=percmae.\n#\n#   kubectl apply -f k8s/{RUNTIME}\n"
    )
    return header + _yaml(training_runtime(settings))


def _works(place: Folder) -> Iterator[Named]:
    data = f"{BUCKET}/datasets/{place.dataset}/manifest.json"
    runs = f"{BUCKET}/runs"
    yield _ingest("ingest", f"{BUCKET}/archives", "imagenet")
    images = ("--images", f"{BUCKET}/images", "--to", f"{BUCKET}/datasets/images")
    yield _named(command("ingest", "images", *images), "ingest-images")
    if place.sample:
        yield _ingest("sample", "/tmp/sample", "sample")
    for variant in VARIANTS:
        own = [VGG16] if variant == "perceptual" and place.recipe != "demo" else []
        config = load_config(variant, place.recipe, overrides=own, tag=place.dataset)
        yield _named(training(config, data, runs), f"pretrain-{variant}")
    parent = f"{runs}/{place.dataset}_mae"
    for stage in ("finetune", "probe"):
        config = load_config("mae", place.recipe, stage, tag=place.dataset)
        work = training(config, data, runs, run=parent, base=config)
        yield _named(work, stage)
    judged = f"{place.dataset}_mae_finetune"
    arguments = ("--run", f"{runs}/{judged}", "--data", data, "--json")
    yield _named(command("evaluate", judged, *arguments), "evaluate")


def _ingest(file: str, archives: str, dataset: str) -> Named:
    given = [part for key, name in ARCHIVES.items() for part in (f"--{key}", f"{archives}/{name}")]
    to = f"{BUCKET}/datasets/{dataset}"
    return _named(command("ingest", dataset, *given, "--to", to), file)


def _named(work: Work, file: str) -> Named:
    values = {field.name: getattr(work, field.name) for field in fields(work)}
    return Named(**values, file=file.replace("_", "-"))


def _with_archives(job: Object) -> Object:
    """A container before the one that ingests, which writes the sample archives it reads."""
    pod = job["spec"]["template"]["spec"]
    before = deepcopy(pod["containers"][0])
    before["name"] = "archives"
    before["command"] = ["tini", "--", "percmae", "sample-data", "--out", "/tmp/sample", *SAMPLE]
    # It knows nothing of the store.
    before["env"] = [entry for entry in before["env"] if "valueFrom" not in entry]
    del before["envFrom"]
    pod["initContainers"] = [before]
    job["metadata"]["annotations"][DIGEST_ANNOTATION] = object_digest(job)
    return job


# In the image that trains, so that a cluster without internet has it too.
SAMPLE = ("--source", "mnist")


def _text(place: Folder, work: Work, job: Object) -> str:
    path = f"k8s/{place.folder}/{work.name}.yaml"
    header = f"{MARK}; do not edit.\n# Needs {place.needs}.\n#\n#   kubectl apply -f {path}\n"
    return header + _yaml(job)


def _yaml(content: Object) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, and with lists set in as people write them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _main(args: argparse.Namespace) -> None:
    if args.overrides and args.to is None:
        raise UserError(
            "the committed files have no settings of their own: give a folder (--to DIR) for yours"
        )
    root = local_path(args.to, "--to") if args.to is not None else Path("k8s")
    if args.to is None and not (root / "base").is_dir():
        raise UserError(
            "there is no k8s/base here: run this at the top of a checkout, or give --to"
        )
    written = write(root, args.overrides)
    if args.to is None:
        overlays = write_overlays(root)
        if overlays is None:
            warn(f"there is no kubectl here: {root / RENDERED} is left as it is")
        written += overlays or []
    for path in written:
        print(path)


def main() -> NoReturn:
    """The command; exit codes as of ``percmae``."""
    parser = argparse.ArgumentParser(prog="python -m percmae.jobs.manifests", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--to", metavar="DIR", help="where to write (default: k8s)")
    parser.set_defaults(overrides=[])
    sys.exit(exit_code(lambda: _main(parse(parser, sys.argv[1:]))))


if __name__ == "__main__":
    main()
