"""Who follows a job, who may end it, and what is removed when its time is over."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from doctor.kube_server import PODS, TRAININGS, KubeServer

from percmae.jobs import claims
from percmae.jobs.claims import Claim, claims_of, clean, sweep
from percmae.jobs.client import Client
from percmae.jobs.names import CLAIMS, PYTORCH_JOB, TTL_ANNOTATION, Object

JOB = f"{TRAININGS}/train"
WORKFLOWS = ("argoproj.io/v1alpha1", "Workflow")
CRON = "/apis/batch/v1/namespaces/percmae/jobs/cron"


class Cluster(KubeServer):
    """Lists trainings by what is there."""

    def get(self, path: str) -> tuple[int, Object | str]:
        if path == TRAININGS:
            below = (each for at, each in self.objects.items() if at.rpartition("/")[0] == path)
            return 200, {"items": list(below), "metadata": {}}
        return super().get(path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(claims, "_SETTLING", 0)
    with Cluster().running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        server.objects[JOB] = {
            "metadata": {"name": "train", "uid": "t", "resourceVersion": "1", "labels": {}},
            "spec": {},
        }
        yield server


def owner(name: str, kind: tuple[str, str] = WORKFLOWS) -> Object:
    return {"apiVersion": kind[0], "kind": kind[1], "name": name, "uid": f"uid-{name}"}


def claim(
    server: KubeServer, monkeypatch: pytest.MonkeyPatch, run: str, made_by: Object | None = None
) -> Claim:
    """Of a launcher in a pod ``step-<run>``, made by a controller or by hand."""
    name = f"step-{run}"
    owners = [{**made_by, "controller": True, "blockOwnerDeletion": True}] if made_by else []
    metadata = {"name": name, "uid": f"uid-{name}", "ownerReferences": owners}
    server.objects[f"{PODS}/{name}"] = {"metadata": metadata, "status": {}}
    monkeypatch.setenv("KFP_POD_NAME", name)
    client = Client("percmae")
    client.inside = True
    return Claim(client, run)


def seen(server: KubeServer) -> Object:
    """The job as a launcher sees it now."""
    return deepcopy(server.objects[JOB])


def followers(server: KubeServer) -> tuple[list[str], list[str]]:
    """The claims on the job, and its owners."""
    metadata = server.objects[JOB]["metadata"]
    owners = [each["name"] for each in metadata.get("ownerReferences", [])]
    return [each.removeprefix(CLAIMS) for each in claims_of(server.objects[JOB])], owners


def test_what_made_a_launchers_pod_owns_the_job(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claim(server, monkeypatch, "a", owner("flow-a")).owner == owner("flow-a")
    alone = claim(server, monkeypatch, "b").owner
    assert alone == {"apiVersion": "v1", "kind": "Pod", "name": "step-b", "uid": "uid-step-b"}


def test_a_job_lives_as_long_as_someone_follows_it(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (claim(server, monkeypatch, r, owner(f"flow-{r}")) for r in ("a", "b"))
    for each in (first, second, first):
        assert each.add(JOB, deepcopy(server.objects[JOB])) is not None
    assert followers(server) == (["a", "b"], ["flow-a", "flow-b"])
    assert first.give_up(JOB, seen(server)) == ["b"]
    assert followers(server) == (["b"], ["flow-b"])
    assert server.deleted == []
    last = seen(server)
    assert second.give_up(JOB, last) == []
    assert server.deleted == [JOB]
    assert second.give_up(JOB, last) == [], "there is nothing to give up any more"
    assert second.add(JOB, {"metadata": {"uid": "t"}}) is None


def test_a_job_followed_from_outside_goes_with_no_workflow(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Claim(Client("percmae"), "")
    run = claim(server, monkeypatch, "a", owner("flow-a"))
    outside.add(JOB, server.objects[JOB])
    run.add(JOB, server.objects[JOB])
    assert followers(server) == (["submit", "a"], [])
    assert run.give_up(JOB, seen(server)) == ["submit"]
    assert server.deleted == []


def test_another_write_in_between_is_seen(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (claim(server, monkeypatch, r, owner(f"flow-{r}")) for r in ("a", "b"))
    looked = deepcopy(server.objects[JOB])
    first.add(JOB, looked)
    server.objects[JOB]["metadata"]["resourceVersion"] = "2"
    patch = server.patch

    def strict(path: str, body: Object) -> tuple[int, Object]:
        if body["metadata"]["resourceVersion"] != "2":
            return 409, {"message": "the object has been modified"}
        return patch(path, body)

    monkeypatch.setattr(server, "patch", strict)
    second.add(JOB, looked)
    assert followers(server) == (["a", "b"], ["flow-a", "flow-b"])


def test_who_has_claimed_a_job_since_it_was_seen_keeps_it(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server looks whether the job is still as it was: one request less for who gives up."""
    first, second = (claim(server, monkeypatch, r, owner(f"flow-{r}")) for r in ("a", "b"))
    first.add(JOB, seen(server))
    before = seen(server)
    second.add(JOB, seen(server))
    server.objects[JOB]["metadata"]["resourceVersion"] = "2"
    delete = server.delete

    def strict(path: str, body: Object) -> tuple[int, Object]:
        if body["preconditions"] != {"uid": "t", "resourceVersion": "2"}:
            return 409, {"message": "the object has been modified"}
        return delete(path, body)

    monkeypatch.setattr(server, "delete", strict)
    assert first.give_up(JOB, before) == ["b"]
    assert followers(server) == (["b"], ["flow-b"])
    assert second.give_up(JOB, seen(server)) == []
    assert server.deleted == [JOB]


def test_a_pod_that_is_moved_is_told_from_a_pipeline_that_is_terminated(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = claim(server, monkeypatch, "a", owner("flow-a"))
    pod = server.objects[f"{PODS}/step-a"]
    assert not mine.moved(), "only told to stop"
    pod["status"] = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert mine.moved(), "its node lets go of it"
    pod["status"] = {}
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert mine.moved(), "it is being deleted"
    del server.objects[f"{PODS}/step-a"]
    assert mine.moved(), "it has gone"
    alone = claim(server, monkeypatch, "b")
    server.objects[f"{PODS}/step-b"]["metadata"]["deletionTimestamp"] = "now"
    assert not alone.moved(), "no other pod comes in its place"


@pytest.mark.parametrize(
    ("job", "moved"),
    [
        ({"metadata": {}, "status": {}}, True),
        ({"metadata": {"deletionTimestamp": "now"}}, False),
        ({"metadata": {}, "status": {"conditions": [{"type": "FailureTarget", "status": "True"}]}},
         False),
        (None, False),
    ],
)  # fmt: skip
def test_a_job_that_ends_takes_its_pods_away_for_good(
    server: Cluster, monkeypatch: pytest.MonkeyPatch, job: Object | None, moved: bool
) -> None:
    """At its deadline, say: that is no move."""
    mine = claim(server, monkeypatch, "a", owner("cron", ("batch/v1", "Job")))
    server.objects[f"{PODS}/step-a"]["metadata"]["deletionTimestamp"] = "now"
    if job is not None:
        server.objects[CRON] = job
    assert mine.moved() is moved


def test_cleaning_up_leaves_what_another_run_follows(
    server: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("a", "b"):
        claim(server, monkeypatch, run, owner(f"flow-{run}")).add(JOB, server.objects[JOB])
    monkeypatch.delenv("KFP_POD_NAME")
    assert clean("a", "percmae", 0) == []
    assert "PyTorchJob train goes on: b follows it too" in capsys.readouterr().err
    assert clean("b", "percmae", 0) == ["PyTorchJob train"]
    assert server.deleted == [JOB]


@pytest.mark.parametrize(
    ("spec", "notes", "age", "removed"),
    [
        ({"runPolicy": {"ttlSecondsAfterFinished": 600}}, {}, 700, True),
        ({"runPolicy": {"ttlSecondsAfterFinished": 600}}, {}, 500, False),
        ({"runPolicy": {}}, {}, 10**7, False),
        ({}, {TTL_ANNOTATION: "600"}, 700, True),
    ],
)
def test_what_ended_long_ago_is_removed(
    server: Cluster, spec: Object, notes: dict[str, str], age: int, removed: bool
) -> None:
    when = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    failed: Any = {"type": "Failed", "status": "True", "lastTransitionTime": when}
    server.objects[JOB] |= {"spec": spec, "status": {"conditions": [failed]}}
    server.objects[JOB]["metadata"]["annotations"] = notes
    going = {"metadata": {"name": "going", "uid": "g"}, "spec": spec, "status": {}}
    server.objects[f"{TRAININGS}/going"] = going
    sweep(Client("percmae"), PYTORCH_JOB)
    assert server.deleted == ([JOB] if removed else [])


def test_the_namespace_is_the_launchers(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner lies in the namespace of what it owns: a pod of another namespace owns nothing."""
    monkeypatch.setenv("KFP_POD_NAME", "elsewhere")
    client = Client("percmae")
    client.inside = True
    mine = Claim(client, "a")
    assert (mine.owner, mine.moved()) == (None, False)
