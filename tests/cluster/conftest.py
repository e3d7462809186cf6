"""Namespaces of a real cluster with the service accounts of k8s/base, one for each test.

Runs against the cluster that KUBECONFIG names, in namespaces of its own, when it is asked to
(``make test-cluster`` sets PERCMAE_TEST_CLUSTER): nobody's cluster is touched by ``make test``.
Tests wait more than they compute, so several run side by side (pytest-xdist).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployed, namespace_for, overlay
from jobs.schemas.make import load
from kube import Kube, wait
from trainings import Laptop, laptop

LAUNCHING = ("namespace", "rights", "config")
ASKED = "PERCMAE_TEST_CLUSTER"
# Modules whose tests share something and come one after the other, on one worker.
TOGETHER = {
    "test_training": "training",
    "test_manifests": "manifests",
    "test_doctor": "doctor",
    "test_objects": "trainer",
    "test_trainjob": "trainer",
}
# What takes minutes begins first: the rest runs beside it.
LONGEST = (
    *("test_training", "test_scheduled_run", "test_lost_worker", "test_manifests"),
    *("test_doctor", "test_inside", "test_objects", "test_operator"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.cluster)
        if not os.environ.get(ASKED):
            item.add_marker(pytest.mark.skip(reason=f"{ASKED} is not set: make test-cluster"))
    ours.sort(key=lambda item: [*LONGEST, item.path.stem].index(item.path.stem))
    items[:] = [item for item in items if item not in ours] + ours


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What goes to which worker: TOGETHER by module, everything else test by test.

    (As --dist loadgroup would, which tells its groups by node ids that pytest 9.2 no longer lets a
    plugin change.)
    """
    if not os.environ.get(ASKED):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(Path(nodeid.partition("::")[0]).stem, nodeid)

    config.option.loadscopereorder = False  # the order is LONGEST's
    return Scheduling(config, log)


@pytest.fixture
def kube() -> Iterator[Deployed]:
    """A namespace to launch in, with no store; in the end nothing may run in it any more."""
    with namespace_for("launch") as made:
        parts = [overlay(f"base/{part}", made.namespace) for part in LAUNCHING]
        made.apply(*(each for part in parts for each in part))
        made.create_secret()
        yield made

        def running() -> list[str]:
            pods = made.get("pods")
            return [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]

        made.wait(lambda: not running(), 150, "launchers clean up, or jobs end")


@pytest.fixture(scope="session")
def trainer() -> Iterator[None]:
    """The kinds of Kubeflow Trainer, made if they are not there and then removed.

    They are the whole cluster's: one worker only may ask for them (TOGETHER).
    """
    admin = Kube("default")
    known = admin("api-resources", "--api-group=trainer.kubeflow.org", "-o", "name").split()
    definitions = [each for each in load().values() if "trainer" in each["spec"]["group"]]
    new = [each for each in definitions if each["metadata"]["name"] not in known]
    names = [each["metadata"]["name"] for each in new]

    def established(name: str) -> bool:
        # (kubectl wait does not bear an object that has no status yet.)
        conditions = admin.get("crd", name).get("status", {}).get("conditions") or []
        return ("Established", "True") in {(c["type"], c["status"]) for c in conditions}

    try:
        if new:
            everything = {"apiVersion": "v1", "kind": "List", "items": new}
            admin("create", "--validate=strict", "-f", "-", stdin=json.dumps(everything))
            wait(lambda: all(established(name) for name in names))
        yield
    finally:
        if new:
            admin("delete", "crd", *names, "--wait=false", "--ignore-not-found")


@pytest.fixture
def launcher_config(kube: Deployed, tmp_path: Path) -> Path:
    """A kubeconfig that acts as the launcher's service account, with just its rights."""
    return kube.kubeconfig("percmae-launcher", tmp_path)


@pytest.fixture(scope="module")
def here(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laptop]:
    """A namespace with a store for the module, and a folder before it that acts as a laptop."""
    name = request.path.stem.removeprefix("test_").replace("_", "-")
    with laptop(name, tmp_path_factory.mktemp("home")) as here:
        yield here
