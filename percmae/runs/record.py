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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from percmae import __version__
from percmae.config import Config, config_from_dict, digest, to_dict, to_yaml
from percmae.config.load import leaves
from percmae.data.shards import Dataset
from percmae.errors import ConfigError, DataError, PercmaeError, UserError
from percmae.storage import StorePath

FORMAT = "percmae-run/1"


class RunResult(NamedTuple):
    """What a training verb returns: the run's URI, its last figures, and whether it was reused."""

    uri: str
    metrics: dict[str, float]
    reused: bool


class Identity(NamedTuple):
    """What a run is about; everything that its result depends on.

    name: folder name; data and data_digest: the dataset; parent and parent_key: the run it builds
    upon; baseline: the control that trains on an untrained encoder.
    """

    name: str
    config: Config
    data: str
    data_digest: str
    parent: str | None = None
    parent_key: str | None = None
    baseline: bool = False

    @property
    def key(self) -> str:
        """The training key: equal keys mean an equal result, so a finished run is reused."""
        parts = [FORMAT, digest(self.config), self.data_digest, self.parent_key, self.baseline]
        return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class Run:
    """An open run folder."""

    path: StorePath
    record: dict[str, Any]
    config: Config
    started: float = field(default_factory=time.time)

    @classmethod
    def open(cls, uri: str) -> Run:
        """An existing run. Raises DataError when there is none or it is not of this format."""
        path = StorePath(uri)
        try:
            record = (path / "run.json").read_json()
        except (UserError, ValueError, OSError) as error:
            raise DataError(
                f"run {uri}: no readable run.json there; give the URI that percmae pretrain "
                f"printed ({error})"
            ) from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise DataError(f"run {uri}: run.json is not of format {FORMAT}")
        return cls(path, record, config_from_dict(record["config"]))

    @classmethod
    def find(cls, to: str, identity: Identity) -> Run | None:
        """The run of that name below ``to``, if there is one."""
        path = StorePath(to) / identity.name
        return cls.open(path.uri) if (path / "run.json").exists() else None

    @classmethod
    def create(cls, to: str, identity: Identity, versions: dict[str, str]) -> Run:
        """Write a new run's config and record; what an earlier run of the name left is removed."""
        path = StorePath(to) / identity.name
        _empty(path)
        config = identity.config
        record = {
            "format": FORMAT,
            "name": identity.name,
            "stage": config.stage,
            "variant": config.variant,
            "tag": config.tag,
            "seed": config.seed,
            "baseline": identity.baseline,
            "key": identity.key,
            "config_digest": digest(config),
            "data": {"uri": identity.data, "digest": identity.data_digest},
            "parent": identity.parent,
            "status": "running",
            "step": 0,
            "total_steps": None,
            "started": time.time(),
            "finished": None,
            "seconds": 0.0,
            "metrics": {},
            "versions": {"percmae": __version__, "python": platform.python_version(), **versions},
            "config": to_dict(config),
        }
        run = cls(path, record, config)
        (path / "config.yaml").write_text(to_yaml(config))
        run.save()
        return run

    def forget(self) -> None:
        """Remove a run that failed, unless there is a checkpoint to go on from or a diagnostic."""
        # The failure that led here is what is to be told, not a store that is away by now.
        with suppress(PercmaeError, OSError):
            if not list((self.path / "checkpoints").iter()):
                _empty(self.path)

    @property
    def uri(self) -> str:
        """Where the run lies."""
        return self.path.uri

    @property
    def complete(self) -> bool:
        """Whether training reached its end."""
        return self.record["status"] == "complete"

    @property
    def key(self) -> str:
        """The training key it was started with."""
        return str(self.record["key"])

    def result(self, reused: bool = False) -> RunResult:
        """What the verb returns for this run."""
        return RunResult(self.uri, self.record["metrics"], reused)

    def save(self, **changes: Any) -> None:
        """Update the record and write it (atomically)."""
        self.record.update(changes)
        (self.path / "run.json").write_json(self.record)


def existing_run(to: str, identity: Identity, resume: str) -> Run | None:
    """The run that already has the identity's name below ``to``, if it may be gone on with.

    Under ``resume="auto"`` that is one begun with the same key. Raises UserError when the name is
    taken by a run with another config or dataset, or when one exists that is not complete and
    resuming was not asked for.
    """
    run = Run.find(to, identity)
    if run is None:
        return None
    if run.key != identity.key:
        raise UserError(
            f"run {run.uri} exists with another {_difference(run, identity)}; choose another "
            "--tag, or remove it"
        )
    if resume != "auto" and not run.complete:
        raise UserError(
            f"run {run.uri} exists, stopped at step {run.record['step']}; add --resume auto to go "
            "on with it, or choose another --tag"
        )
    return run


def identity_of(
    config: Config, dataset: Dataset, parent: Run | None = None, untrained: bool = False
) -> Identity:
    """What a training is about, before it begins.

    parent: the run that a probe or fine-tuning builds upon; the number of classes is then filled
    in. Raises ConfigError when another one is configured, DataError for a single class.
    """
    if parent is None:
        return Identity(config.run_name, config, dataset.uri, dataset.digest)
    found = len(dataset.classes)
    if found < 2:
        raise DataError(
            f"dataset {dataset.uri} has {found} class: nothing to tell apart; a probe or "
            "fine-tuning needs 2 or more"
        )
    if config.classifier.classes not in (None, found):
        raise ConfigError(
            f"classifier.classes={config.classifier.classes}, but dataset {dataset.uri} has "
            f"{found} classes; set it to {found} or leave it out"
        )
    config = replace(config, classifier=replace(config.classifier, classes=found))
    name = config.run_name + (UNTRAINED if untrained else "")
    return Identity(name, config, dataset.uri, dataset.digest, parent.uri, parent.key, untrained)


UNTRAINED = "_untrained"
"""What the name of a control ends with."""


def stored_evaluation(run: str, data: str) -> dict[str, Any] | None:
    """The figures that :func:`percmae.engine.evaluate.evaluate` has left, if they are of these.

    Of the run's present weights and of the dataset whose manifest is ``data``, that is. Raises
    DataError when there is no such run, UserError when it is not complete.
    """
    opened, dataset = Run.open(run), Dataset.open(data)
    if not opened.complete:
        raise UserError(
            f"run {run} stopped at step {opened.record['step']}; finish it with --resume auto first"
        )
    path = opened.path / EVALUATION
    if not path.exists():
        return None
    earlier: dict[str, Any] = path.read_json()
    same = (earlier.get("key"), earlier["data"]["digest"]) == (opened.key, dataset.digest)
    return earlier if same else None


EVALUATION = "evaluation.json"


def _empty(folder: StorePath) -> None:
    for entry in list(folder.iter()):
        entry.path.delete()


def _difference(run: Run, identity: Identity) -> str:
    if run.record["data"]["digest"] != identity.data_digest:
        return "dataset"
    old, new = leaves(run.config), leaves(identity.config)
    changed = [key for key in new if old.get(key) != new[key]]
    if run.record["config_digest"] != digest(identity.config):
        return "config (" + ", ".join(f"{k}: {old.get(k)} → {new[k]}" for k in changed[:3]) + ")"
    return "parent run"
