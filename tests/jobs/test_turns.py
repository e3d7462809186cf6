"""Trainings of several pods that hold what the other needs: the younger one makes room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor.kube_server import PODS, TRAININGS, KubeServer

from percmae.jobs import state, turns
from percmae.jobs.client import Client
from percmae.jobs.names import (
    INSTANCE_LABEL,
    PYTORCH_JOB,
    QUEUE_LABEL,
    YIELDS_ANNOTATION,
    Object,
)
from percmae.jobs.turns import Turns


class Cluster(KubeServer):
    """Trainings of two pods each, and the pods."""

    def __init__(self) -> None:
        super().__init__()
        self.pods: list[Object] = []

    def get(self, path: str) -> tuple[int, Object | str]:
        if path == PODS:
            return 200, {"items": self.pods, "metadata": {}}
        if path == TRAININGS:
            return 200, {"items": list(self.objects.values()), "metadata": {}}
        return super().get(path)

    def training(self, name: str, born: str, placed: int, labels: Any = (), **spec: Any) -> Object:
        """One that began at ``born`` and has a node for ``placed`` of its two pods."""
        replicas = {"Master": {"replicas": 1}, "Worker": {"replicas": 1}}
        made: Object = {
            "kind": PYTORCH_JOB.kind,
            "metadata": {"name": name, "creationTimestamp": born, "labels": dict(labels)},
            "spec": {"pytorchReplicaSpecs": replicas, "runPolicy": {}, **spec},
        }
        self.objects[f"{TRAININGS}/{name}"] = made
        for number in range(2):
            pod_spec = {"nodeName": "n"} if number < placed else {}
            metadata = {"name": f"{name}-{number}", "labels": {INSTANCE_LABEL: name}}
            self.pods.append({"metadata": metadata, "spec": pod_spec, "status": {}})
        return made

    def own(self, name: str) -> list[Object]:
        """The pods of a training."""
        return [pod for pod in self.pods if pod["metadata"]["labels"][INSTANCE_LABEL] == name]

    def look(self, name: str) -> bool:
        """What the launcher of a training does at each look."""
        if name not in self.turns:
            path = f"{TRAININGS}/{name}"
            self.turns[name] = Turns(Client("percmae"), PYTORCH_JOB, path)
        return self.turns[name].look(self.objects[f"{TRAININGS}/{name}"], self.own(name))

    turns: dict[str, Turns]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(turns, "YIELD_AFTER", -1)
    with Cluster().running() as server:
        assert isinstance(server, Cluster)
        server.turns = {}
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


def test_the_younger_makes_room_until_the_older_has_its_pods(server: Cluster) -> None:
    older, younger = server.training("z", "1", 1), server.training("a", "2", 1)
    assert not server.look("z")
    assert server.patched == [], "the oldest stays"
    assert not server.look("a")
    assert younger["spec"]["runPolicy"] == {"suspend": True}
    assert younger["metadata"]["annotations"] == {YIELDS_ANNOTATION: "z"}
    assert state.waits_for(younger, [], []) == "makes room for z, which began before it"
    assert not server.look("a"), "not its turn yet"
    server.own("z")[1]["spec"]["nodeName"] = "n"
    assert server.look("a"), "it begins anew"
    assert younger["spec"]["runPolicy"] == {"suspend": False}
    assert YIELDS_ANNOTATION not in younger["metadata"]["annotations"]
    assert older["spec"]["runPolicy"] == {}


@pytest.mark.parametrize("placed", [0, 2])
def test_who_holds_nothing_or_has_all_stays(server: Cluster, placed: int) -> None:
    server.training("z", "1", 1)
    server.training("a", "2", placed)
    server.look("a")
    assert server.patched == []


def test_of_the_same_age_the_name_decides(server: Cluster) -> None:
    for name in ("a", "b"):
        server.training(name, "1", 1)
    for name in ("a", "b"):
        server.look(name)
    assert [path for path, _ in server.patched] == [f"{TRAININGS}/b"]


@pytest.mark.parametrize(
    "other",
    [
        {"labels": {QUEUE_LABEL: "q"}},
        {"runPolicy": {"suspend": True}},
        {"pytorchReplicaSpecs": {"Master": {"replicas": 1}}},
        {"elasticPolicy": {"minReplicas": 1}},
    ],
)
def test_who_takes_no_nodes_now_is_not_waited_for(server: Cluster, other: dict[str, Any]) -> None:
    server.training("z", "1", 1, **other)
    server.training("a", "2", 1)
    server.look("a")
    assert server.patched == []


def test_some_patience_first(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "YIELD_AFTER", 1e9)
    server.training("z", "1", 1)
    server.training("a", "2", 1)
    server.look("a")
    assert server.patched == []
