"""Versions of models in MLflow's registry, for those whose runs are told to MLflow.

MLflow counts versions by itself; the tags ``percmae.model`` and ``percmae.version`` say which of
ours one is. Files stay where they are: a version's source is its folder in our store. What MLflow
does not take is warned of, and made up for by the same command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from percmae.progress import warn
from percmae.registry.model import Reference, Version
from percmae.runs.mlflow import Mirror, NotTold, client, telling
from percmae.runs.record import Run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class _Registry:
    """What one server has of a model."""

    def __init__(self, server: str, reference: Reference) -> None:
        self._client: MlflowClient = client(server)
        self._reference = reference
        self._name = reference.name

    @telling()
    def number(self, version: Version, run_id: str | None = None) -> str:
        """MLflow's number of a version, which is made where there is none."""
        if not self._client.search_registered_models(f"name = '{self._name}'", max_results=1):
            self._client.create_registered_model(self._name)
        tags = {
            "percmae.model": self._reference.path.uri,
            "percmae.version": str(version.version),
            "percmae.run": version.run,
            "percmae.key": version.key,
        }
        for there in self._client.search_model_versions(f"name = '{self._name}'"):
            if all(there.tags.get(k) == tags[k] for k in ("percmae.model", "percmae.version")):
                return str(there.version)
        source = (self._reference.path / version.folder).uri
        made = self._client.create_model_version(
            self._name, source, run_id, tags, await_creation_for=None
        )
        return str(made.version)

    @telling()
    def point(self, alias: str, number: str) -> None:
        """Have an alias name a version of MLflow's."""
        self._client.set_registered_model_alias(self._name, alias, number)


def tell_of_version(run: Run, reference: Reference, version: Version) -> None:
    """Make a version of it in MLflow's registry where the run is told to MLflow."""
    if version.mlflow is None:
        return
    try:
        run_id = Mirror(run, run.config).id()
        _Registry(version.mlflow, reference).number(version, run_id)
    except NotTold as error:
        _warn(reference, version, error)


def tell_of_alias(reference: Reference, alias: str, version: Version) -> None:
    """Have an alias name the version in MLflow's registry too, where it is there."""
    if version.mlflow is None:
        return
    try:
        registry = _Registry(version.mlflow, reference)
        registry.point(alias, registry.number(version))
    except NotTold as error:
        _warn(reference, version, error)


def _warn(reference: Reference, version: Version, error: NotTold) -> None:
    warn(
        f"model {reference.path}: MLflow at {version.mlflow} does not know of version "
        f"{version.version} what we do ({error}); the same command again tells it"
    )
