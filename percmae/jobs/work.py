"""What a job carries out: the command of one stage, and a name that a retry finds again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from percmae.config import Config, digest, load_config
from percmae.config.load import leaves
from percmae.config.naming import Features, key_part, options
from percmae.jobs.names import LONGEST_JOB_NAME

_MARK = 8


@dataclass(frozen=True)
class Work:
    """One stage's command.

    stage: the verb; arguments: of ``percmae``, the verb first; run: name of what is made, for
    people and labels; digest: hex, of everything that the result depends on; trains: whether it is
    a training, which may be spread over several processes; config: what is trained, to see whether
    it fits the pods; folder: of the run that is trained, in the store.
    """

    stage: str
    arguments: tuple[str, ...]
    run: str
    digest: str
    trains: bool
    config: Config | None = field(default=None, compare=False, repr=False)
    folder: str = field(default="", compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the job (DNS-1035): stage, run and a mark of the digest.

        The same work always has the same name, so whoever is told to do it again finds the job.
        """
        mark = self.digest[:_MARK]
        stem = re.sub(r"[^a-z0-9]+", "-", f"{self.stage}-{self.run}".lower()).strip("-")
        return f"{stem[: LONGEST_JOB_NAME - _MARK - 1].rstrip('-')}-{mark}"


def training(
    config: Config,
    data: str,
    to: str,
    run: str | None = None,
    features: Features = "pretrained",
    base: Config | None = None,
) -> Work:
    """A pretraining, or a fine-tuning or probe of ``run``.

    data: the dataset's manifest; to: folder of the runs; features: what it builds upon; base: what
    the stage's settings would be without overrides of its own (needed where they come from
    ``run``). The result's identity takes no note of operational settings such as data.workers.
    """
    if config.stage == "pretrain":
        base = load_config(config.variant, config.recipe)
        given = ["--variant", config.variant, "--recipe", config.recipe]
    else:
        assert run is not None, "a probe or fine-tuning builds upon a run"
        assert base is not None, "and takes settings from it"
        given = ["--run", run, "--recipe", config.recipe]
        given += options(config.stage, features)
    if config.tag is not None:
        given += ["--tag", config.tag]
    arguments = [config.stage, *given, "--data", data, "--to", to, "--resume", "auto"]
    arguments += differences(config, base)
    identity = [digest(config), config.run_name, data, to, run, key_part(features)]
    name = config.name_on(features)
    short = _short(name, config.stage)
    folder = f"{to.rstrip('/')}/{name}"
    return Work(config.stage, tuple(arguments), short, _hash(identity), True, config, folder)


def differences(config: Config, base: Config) -> list[str]:
    """The ``key=value`` settings that make ``config`` of ``base``."""
    old = leaves(base)
    return [
        f"{key}={json.dumps(value)}"
        for key, value in leaves(config).items()
        if value != old[key] and key not in ("tag", "stage", "variant", "recipe")
    ]


def command(stage: str, run: str, *arguments: str) -> Work:
    """Any other stage (ingest, evaluate …): its verb with these arguments."""
    return Work(stage, (stage, *arguments), run, _hash([stage, *arguments]), False)


def _short(name: str, stage: str) -> str:
    """The run's name without the stage, which a job's name begins with."""
    return name.replace(f"_{stage}", "")


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
