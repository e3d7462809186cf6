"""The verbs from Python: what ``percmae pretrain`` and the others do, as functions.

    import percmae

    run = percmae.pretrain(data="datasets/photos/manifest.json", variant="ls_gan", size="small")
    features = percmae.embed(run, "s3://bucket/other-photos").features

Each is imported on first use, so ``import percmae`` imports no torch. Errors are
:class:`percmae.errors.PercmaeError`, with the one line that the command line would say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from percmae.config import load_config
from percmae.config.naming import Features
from percmae.data.addresses import joined
from percmae.data.mixture import AnyDataset
from percmae.engine import embed as _embed
from percmae.engine import evaluate as _evaluate
from percmae.engine import finetune as _finetune
from percmae.engine import pretrain as _pretrain
from percmae.engine.embed import EmbedResult as EmbedResult
from percmae.errors import ConfigError, UserError
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import Evaluation
from percmae.runs.parent import Parent
from percmae.runs.record import Run
from percmae.stages.parent import parent_of

embed = _embed.embed
encoder = _embed.encoder

Address = str | os.PathLike[str]
Data = Address | AnyDataset | Sequence[Address | AnyDataset]
"""A dataset, opened or as the address of its manifest; or several, to train on all of them."""


def pretrain(
    *,
    data: Data | None = None,
    images: str | None = None,
    to: str = "runs",
    variant: str = "mae",
    recipe: str = "mae",
    size: str | None = None,
    tag: str | None = None,
    config: str | None = None,
    resume: str = "auto",
    **overrides: Any,
) -> Run:
    """Pretrain a masked autoencoder in this process, into ``<to>/<tag>_<variant>``.

    data: what to train on; or images: a source as ``percmae ingest --images`` takes it, which is
    made the dataset ``<to>/datasets/<name>`` first. variant, recipe, size, tag: as the options of
    ``percmae pretrain``; config: a YAML file of further settings; overrides: settings by section,
    as in ``optim={"epochs": 20}``, or by their dotted names (those of section data always). A
    finished run of the same settings and data is returned as it is, an unfinished one gone on with;
    resume ``never`` refuses both.

    Raises UserError and its kinds for bad input, Interrupted after a signal (a checkpoint was
    saved), PercmaeError on failure.
    """
    # Settings first: an ingest may take hours.
    settings = load_config(
        variant, recipe, "pretrain", config, settings_of(overrides), tag=tag, size=size
    )
    return _pretrain.pretrain(settings, _one_of(data, images, to), to, resume).run


def probe(
    run: Run | str,
    *,
    data: Data | None = None,
    to: str | None = None,
    features: Features = "pretrained",
    recipe: str | None = None,
    tag: str | None = None,
    config: str | None = None,
    resume: str = "auto",
    **overrides: Any,
) -> Run:
    """Train a linear layer on the frozen encoder of ``run``, a pretraining or a file of weights.

    data: one dataset with labels (default: what the run was trained on); to: folder of the new run
    (default: beside ``run``; of a file ``runs``); features: ``pretrained``, or a control,
    ``untrained`` or ``pixels``. The rest is as of :func:`pretrain`; recipe and tag are the run's
    where none is given.
    """
    parent = _parent(run)
    settings = downstream_config(
        parent, "probe", recipe, config, settings_of(overrides), tag, features
    )
    data, to = _data_of(parent, data), _beside(parent, to)
    return _finetune.probe(settings, parent, data, to, resume, features).run


def finetune(
    run: Run | str,
    *,
    data: Data | None = None,
    to: str | None = None,
    untrained: bool = False,
    recipe: str | None = None,
    tag: str | None = None,
    config: str | None = None,
    resume: str = "auto",
    **overrides: Any,
) -> Run:
    """Fine-tune the whole network from the encoder of ``run``; see :func:`probe`.

    untrained: the control, from scratch.
    """
    parent = _parent(run)
    features: Features = "untrained" if untrained else "pretrained"
    settings = downstream_config(
        parent, "finetune", recipe, config, settings_of(overrides), tag, features
    )
    data, to = _data_of(parent, data), _beside(parent, to)
    return _finetune.finetune(settings, parent, data, to, resume, features).run


def evaluate(run: Run | str, *, data: Data | None = None) -> Evaluation:
    """Figures of a finished run on the test images of ``data`` (default: what it was trained on).

    See :func:`percmae.engine.evaluate.evaluate`, also for what is raised.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    return _evaluate.evaluate(opened.uri, _data_of(opened, data)).evaluation


def settings_of(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key=value`` settings from keyword arguments: sections as mappings, or dotted names.

    Raises ConfigError for a value that no setting can have.
    """
    found = []
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            found += settings_of(value, f"{prefix}{key}.")
            continue
        try:
            found.append(f"{prefix}{key}={json.dumps(value)}")
        except (TypeError, ValueError):
            raise ConfigError(
                f"setting {prefix}{key}: {type(value).__name__} is no kind of value that a setting "
                "has; give a number, a text, a list or None"
            ) from None
    return found


def _one_of(data: Data | None, images: str | None, to: str) -> str:
    """The address of the dataset that is given, or made of the images that are."""
    if (data is None) == (images is None):
        raise UserError("give data (a manifest, or several) or images, one of the two")
    if data is not None:
        return _address(data)
    assert images is not None, "one of the two"
    from percmae.ingest import ingest  # with all that reads sources
    from percmae.stages.steps import dataset_folder, dataset_name

    return ingest(images=images, to=dataset_folder(to, dataset_name(images))).manifest_uri


def _address(data: Data) -> str:
    if isinstance(data, Mapping):
        raise UserError(
            "data is the dataset; give settings of the section data by their dotted names, as in "
            '**{"data.batch_size": 64}'
        )
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, AnyDataset):
        return data.uri
    if not data:
        raise UserError("data: give a manifest, or several")
    return joined([_address(part) for part in data])


def _data_of(parent: Parent, data: Data | None) -> str:
    """The address of a dataset, by default of what a run was trained on."""
    if data is not None:
        return _address(data)
    if not isinstance(parent, Run):
        raise UserError(f"{parent.uri} is a file of weights: give data, a dataset's manifest")
    return parent.record.data.uri


def _parent(run: Run | str) -> Parent:
    return run if isinstance(run, Run) else parent_of(run)


def _beside(parent: Parent, to: str | None) -> str:
    if to is not None:
        return to
    return parent.path.parent.uri if isinstance(parent, Run) else "runs"
