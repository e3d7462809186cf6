"""A run's folder in the store: its identity, its state, where things lie.

See docs/architecture.md, "Words".

``<to>/<name>/`` holds ``config.yaml``, ``run.json``, ``metrics.jsonl``, ``checkpoints/``,
``train_outputs/tensorboard_logs/`` and ``mae_recon_out/``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pydantic import ConfigDict, Field

from percmae import __version__
from percmae.config import Config, config_from_dict, digest, to_dict, to_yaml
from percmae.config.naming import Features, Kind, key_part
from percmae.config.schema import Stage, Variant
from percmae.errors import ConfigError, DataError, PercmaeError, StoreAccessError, UserError
from percmae.progress import note
from percmae.runs.files import DatasetIdentity, Figure, Part, parse
from percmae.runs.parent import Parent, WeightsFile
from percmae.storage import StorePath
from percmae.storage.path import json_text

if TYPE_CHECKING:
    from percmae.data.mixture import AnyDataset, D

RunFormat = Literal["percmae-run/1"]
FORMAT: RunFormat = get_args(RunFormat)[0]
RECORD, CONFIG = "run.json", "config.yaml"
CHECKPOINTS, PICTURES, RESTARTS = "checkpoints", "mae_recon_out", "restarts"


class Extension(Part):
    """That a run was trained for longer than it was begun for: from ``step`` on, under the schedule
    of the longer training; until then for ``epochs`` epochs, or ``max_steps`` steps."""

    step: int
    epochs: int
    max_steps: int | None


class RunRecord(Part):
    """``run.json``: what a run is and how far it has come.

    baseline: whether it builds upon no pretrained encoder; features: what it builds upon, which a
    run of before there was a third choice leaves to ``baseline`` to tell; started, finished:
    seconds since 1970; seconds: time spent training, pauses left out; gpu_seconds: the same times
    the GPUs that it was on; metrics: last figures, named ``<split>/<name>``; epochs: passes over
    the training images up to ``step``, there from the first checkpoint on; parent: the run or file
    of weights it builds upon; parent_sha256: of that file, in hex; of a run it is not there;
    extended: how it came to its config, where it was
    begun for fewer epochs or steps.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    format: RunFormat = FORMAT
    name: str
    stage: Stage
    variant: Variant
    tag: str | None
    seed: int
    baseline: bool
    features: Features | None = Field(default=None, exclude_if=lambda features: features is None)
    key: str
    config_digest: str
    data: DatasetIdentity
    parent: str | None
    parent_sha256: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    status: Literal["running", "complete"] = "running"
    step: int = 0
    total_steps: int | None = None
    started: float
    finished: float | None = None
    seconds: float = 0.0
    gpu_seconds: float = Field(default=0.0, exclude_if=lambda seconds: seconds == 0)
    metrics: dict[str, Figure] = Field(default_factory=dict)
    versions: dict[str, str]
    config: dict[str, Any]
    epochs: float | None = Field(default=None, exclude_if=lambda epochs: epochs is None)
    extended: list[Extension] = Field(
        default_factory=list, exclude_if=lambda extended: not extended
    )

    @property
    def built_on(self) -> Features:
        """What a classifier builds upon."""
        return self.features or ("untrained" if self.baseline else "pretrained")

    @property
    def kind(self) -> Kind:
        """What it is, seen from the pretraining it builds upon, or is."""
        return Kind(self.stage, self.config["data"].get("label_fraction", 1.0), self.built_on)


def read_record(folder: StorePath) -> RunRecord:
    """Raises DataError for a folder that is no run and for a damaged record, StoreError when the
    store cannot be reached."""
    path = folder / RECORD
    try:
        data = path.read_bytes()
    except StoreAccessError:
        if path.exists():
            raise
        raise DataError(
            f"{folder.uri} is not a run: it has no {RECORD}; give the folder that the training "
            "printed as its last line"
        ) from None
    return parse(RunRecord, data, path.uri, "the file is damaged")


class Identity(NamedTuple):
    """What a run is about; everything that its result depends on.

    name: folder name; data and data_digest: the dataset; parent and parent_key: what it builds
    upon; parent_sha256: of that, where it is a file of weights; features: what of it is taken.
    """

    name: str
    config: Config
    data: str
    data_digest: str
    parent: str | None = None
    parent_key: str | None = None
    features: Features = "pretrained"
    parent_sha256: str | None = None

    @property
    def key(self) -> str:
        """The training key: equal keys mean an equal result, so a finished run is reused."""
        # No encoder changes what pixels give.
        parent = None if self.features == "pixels" else self.parent_key
        parts = [FORMAT, digest(self.config), self.data_digest, parent, key_part(self.features)]
        return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class Run:
    """An open run folder."""

    path: StorePath
    record: RunRecord
    config: Config

    @classmethod
    def open(cls, uri: str) -> Run:
        """An existing run.

        Raises DataError when there is none, when its record is damaged or its config is of another
        version.
        """
        path = StorePath(uri)
        record = read_record(path)
        try:
            return cls(path, record, config_from_dict(record.config))
        except ConfigError as error:
            raise DataError(
                f"{path / RECORD}: its config is not one of this percmae ({error}); use the "
                f"version that trained it ({record.versions.get('percmae', 'unknown')})"
            ) from None

    @classmethod
    def find(cls, to: str, name: str) -> Run | None:
        """The run of that name below ``to``, if there is one."""
        path = StorePath(to) / name
        return cls.open(path.uri) if (path / RECORD).exists() else None

    @classmethod
    def create(cls, to: str, identity: Identity, versions: dict[str, str]) -> Run:
        """Write a new run's config and record; what an earlier run of the name left is removed."""
        path = StorePath(to) / identity.name
        _empty(path)
        config = identity.config
        record = RunRecord(
            name=identity.name,
            stage=config.stage,
            variant=config.variant,
            tag=config.tag,
            seed=config.seed,
            baseline=identity.features != "pretrained",
            features=None if config.stage == "pretrain" else identity.features,
            key=identity.key,
            config_digest=digest(config),
            data=DatasetIdentity(uri=identity.data, digest=identity.data_digest),
            parent=identity.parent,
            parent_sha256=identity.parent_sha256,
            started=time.time(),
            versions={"percmae": __version__, "python": platform.python_version(), **versions},
            config=to_dict(config),
        )
        run = cls(path, record, config)
        (path / CONFIG).write_text(to_yaml(config))
        run.save()
        return run

    def extend(self, identity: Identity) -> Run:
        """Make it one that is trained for longer, as ``identity`` says; itself.

        The config goes first: the record, which decides, is replaced at once.
        """
        record, config, was = self.record, identity.config, self.config.optim
        earlier = Extension(step=record.step, epochs=was.epochs, max_steps=was.max_steps)
        self.config = config
        (self.path / CONFIG).write_text(to_yaml(config))
        self.save(
            key=identity.key,
            config_digest=digest(config),
            config=to_dict(config),
            status="running",
            total_steps=None,
            finished=None,
            extended=[*record.extended, earlier],
        )
        optim = config.optim
        limits = [f"optim.epochs={was.epochs} → {optim.epochs}"]
        if (was.max_steps, optim.max_steps) != (None, None):
            limits.append(f"optim.max_steps={was.max_steps} → {optim.max_steps}")
        note(
            f"{self.uri}: trained for longer ({', '.join(limits)}), from step {record.step} on by "
            "the schedule of the longer training: not quite what that gives from the beginning"
        )
        return self

    def forget(self) -> None:
        """Remove a run that failed, unless there is a checkpoint to go on from or a diagnostic."""
        # The failure that led here is what is to be told, not a store that is away by now.
        with suppress(PercmaeError, OSError):
            if not list((self.path / CHECKPOINTS).iter()):
                _empty(self.path)

    @property
    def uri(self) -> str:
        """Where the run lies."""
        return self.path.uri

    @property
    def complete(self) -> bool:
        """Whether training reached its end."""
        return self.record.status == "complete"

    def require_complete(self) -> None:
        """Raise UserError unless training reached its end."""
        if not self.complete:
            raise UserError(
                f"run {self.uri} stopped at step {self.record.step}; finish it with --resume auto "
                "first"
            )

    @property
    def key(self) -> str:
        """The training key it was started with."""
        return self.record.key

    @property
    def metrics(self) -> dict[str, float | None]:
        """Its last figures, named ``<split>/<name>``."""
        return self.record.metrics

    def save(self, **changes: Any) -> None:
        """Change fields of the record and write it (atomically)."""
        (self.path / RECORD).write_text(self.changed(**changes))

    def changed(self, **changes: Any) -> str:
        """Change fields of the record; its text, for whoever writes it."""
        for field, value in changes.items():
            setattr(self.record, field, value)
        return json_text(self.record.model_dump(mode="json"))


class RunResult(NamedTuple):
    """What a training returns: the run, and whether it was there already."""

    run: Run
    reused: bool

    @property
    def uri(self) -> str:
        """Where the run lies."""
        return self.run.uri

    @property
    def metrics(self) -> dict[str, float | None]:
        """Its last figures."""
        return self.run.metrics


def begun(to: str, name: str, dataset: D) -> tuple[Run | None, D]:
    """The run of that name below ``to``, if there is one, and the dataset that it goes on with.

    That is the one given, or where it has grown since the run began, the same as it was then.
    """
    from percmae.data.mixture import as_it_was  # numpy: who only reads records needs none

    run = Run.find(to, name)
    if run is None or run.record.data.digest == dataset.digest:
        return run, dataset
    earlier = as_it_was(dataset, run.record.data.uri, run.record.data.digest)
    if earlier is None:
        return run, dataset
    note(
        f"{run.uri}: its dataset has grown since it began; it goes on with {earlier.uri}. To train "
        "on all images, choose another --tag"
    )
    return run, earlier


def identity_of(
    config: Config,
    dataset: AnyDataset,
    parent: Parent | None = None,
    features: Features = "pretrained",
) -> Identity:
    """What a training is about, before it begins.

    The images' mean and deviation are filled in where the config leaves them to the dataset.
    parent: what a probe or fine-tuning builds upon, and features what of it; the number of classes
    is then filled in too. Raises ConfigError when another one is configured, UserError for a
    dataset without labels, DataError for a single class and where the manifest does not have what
    is left to it.
    """
    config = _normalised(config, dataset)
    if parent is None:
        return Identity(config.run_name, config, dataset.pinned, dataset.digest)
    from percmae.data.mixture import require_labels  # as above

    require_labels(dataset, config.stage)
    classes = len(dataset.classes)
    if classes < 2:
        raise DataError(
            f"dataset {dataset.uri} has {classes} class: nothing to tell apart; a probe or "
            "fine-tuning needs 2 or more"
        )
    if config.classifier.classes not in (None, classes):
        raise ConfigError(
            f"classifier.classes={config.classifier.classes}, but dataset {dataset.uri} has "
            f"{classes} classes; set it to {classes} or leave it out"
        )
    config = replace(config, classifier=replace(config.classifier, classes=classes))
    about = (dataset.pinned, dataset.digest, parent.uri, parent.key, features)
    return Identity(
        config.name_on(features),
        config,
        *about,
        parent.sha256 if isinstance(parent, WeightsFile) else None,
    )


def _normalised(config: Config, dataset: AnyDataset) -> Config:
    """The config with numbers for the mean and deviation of the images."""
    augment = config.data.augment
    if augment.mean is not None and augment.std is not None:
        return config
    if dataset.pixels is None:
        raise DataError(
            f"{dataset.uri} was written by an earlier percmae, without mean and deviation of its "
            "images; set data.augment.mean and data.augment.std, or delete it and run ingest again"
        )
    mean = dataset.pixels.mean if augment.mean is None else augment.mean
    std = dataset.pixels.std if augment.std is None else augment.std
    return replace(config, data=replace(config.data, augment=replace(augment, mean=mean, std=std)))


def _empty(folder: StorePath) -> None:
    """Remove what a run has left, but for what a job counts over all of its starts."""
    for entry in list(folder.iter()):
        if not entry.name.startswith(f"{RESTARTS}/"):
            entry.path.delete()
