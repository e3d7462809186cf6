"""Every object that is made or rendered, held against the API server: fields, rules, admission.

What tests/jobs checks by schemas alone is done here by those who decide: strict field validation,
defaults, webhooks, CEL rules and Pod Security. (But for the queue of overlays/multi-node: Kueue's.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import K8S, Deployed, namespace_for, overlay
from doctor.kube_server import healthy
from jobs.works import KINDS, OWNER, ROOT, every_setting, every_work, pretraining
from kube import submit, toy_settings, wait

from percmae.doctor import tries
from percmae.doctor.cluster import doctor_cluster
from percmae.jobs.cron import cron_job, launcher_settings
from percmae.jobs.crontab import parse_cron
from percmae.jobs.names import Object
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.trainjob import training_runtime
from percmae.jobs.work import Work

pytestmark = pytest.mark.slow

OVERLAYS = ("base", *(f"overlays/{path.name}" for path in (K8S / "overlays").iterdir()))
FILES = sorted(str(path.relative_to(K8S)) for path in K8S.rglob("jobs/*.yaml"))


@pytest.fixture(scope="module")
def cluster(trainer: None) -> Iterator[Deployed]:
    """A namespace whose pods must be restricted, with the account that they run as."""
    with namespace_for("objects") as cluster:
        cluster.apply(*overlay("base/namespace", cluster.namespace))
        cluster("create", "serviceaccount", "pods")
        restrict(cluster)
        yield cluster


def restrict(cluster: Deployed) -> None:
    """From now on the namespace takes only pods that are "restricted"."""
    label = "pod-security.kubernetes.io/enforce=restricted"
    cluster("label", "namespace", cluster.namespace, "--overwrite", label)


def rendered(cluster: Deployed, paths: Iterator[str] | tuple[str, ...]) -> Iterator[Object]:
    for path in paths:
        for made in overlay(path, cluster.namespace):
            if "kueue" not in made["apiVersion"] and made["kind"] != "Namespace":
                yield made


def launched(cluster: Deployed, kind: str) -> Iterator[Object]:
    """What a launcher makes of every stage and variant under every setting but ROOT."""
    for work in every_work().values():
        for name, settings in every_setting(kind).items():
            if name == ROOT:
                continue
            made = job_object(work, settings, OWNER)
            made["metadata"]["namespace"] = cluster.namespace
            yield made


def unique(objects: Iterator[Object]) -> list[Object]:
    """Each once; settings that a stage has no use for make the same."""
    return list({json.dumps(made, sort_keys=True): made for made in objects}.values())


@pytest.mark.parametrize("path", OVERLAYS)
def test_the_server_takes_every_overlay(cluster: Deployed, path: str) -> None:
    objects = list(rendered(cluster, (path,)))
    said = cluster.dry_run(*objects)
    assert len(said) == len(objects) > 8


def test_the_server_takes_every_file_of_jobs(cluster: Deployed) -> None:
    objects = list(rendered(cluster, tuple(FILES)))
    assert len(cluster.dry_run(*objects)) == len(objects) == len(FILES) > 30


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_takes_every_job_that_is_launched(cluster: Deployed, kind: str) -> None:
    objects = unique(launched(cluster, kind))
    assert len(cluster.dry_run(*objects)) == len(objects) > 100


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_the_server_takes_every_schedule(cluster: Deployed, zone: str | None) -> None:
    run = ["run", "--launcher", "pytorchjob", "--store", "s3://percmae"]
    for text in ("0 2 * * 0", "*/15 9-17 * * MON-FRI", "5/20 22-23,0-4/2 1,15 JAN,jul *"):
        settings = launcher_settings(namespace=cluster.namespace)
        made = cron_job("weekly", parse_cron(text), run, settings, time_zone=zone)
        assert cluster.dry_run(made) == ["cronjob.batch/weekly created (server dry run)"]


@pytest.mark.parametrize("zone", ["Local", "Europe/Berln"])
def test_time_zones_that_we_refuse_are_refused_by_the_server(cluster: Deployed, zone: str) -> None:
    settings = launcher_settings(namespace=cluster.namespace)
    made = cron_job("weekly", parse_cron("0 2 * * 0"), ["run"], settings, time_zone="Europe/Berlin")
    made["spec"]["timeZone"] = zone
    assert "spec.timeZone" in refusal(cluster, made)


def test_the_server_takes_the_runtime_of_trainjobs(cluster: Deployed) -> None:
    (committed,) = overlay("trainer/runtime.yaml", cluster.namespace)
    others = [{"ttl": None}, {"priority_class": "low", "image_pull_policy": "Always"}]
    made = [training_runtime(job_settings(**values)) for values in others]
    assert len(cluster.dry_run(committed, *made)) == 3


def test_the_server_takes_what_doctor_tries(
    cluster: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "_POLL_SECONDS", 0.01)
    with healthy().running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        doctor_cluster()
    monkeypatch.undo()
    made = [body for _, body in server.posted]
    for each in made:
        each.pop("status", None)
        each["metadata"]["namespace"] = cluster.namespace
        if each["kind"] == "Pod":
            each["spec"]["serviceAccountName"] = "pods"
    assert {each["kind"] for each in made} == {"PyTorchJob", "Pod"}
    assert len(cluster.dry_run(*made)) == 2


def refusal(cluster: Deployed, made: Object) -> str:
    """Why the server does not take an object."""
    text = json.dumps(made)
    done = cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_the_server_refuses_a_field_that_it_does_not_know(cluster: Deployed) -> None:
    """Or the tests above would say nothing."""
    for kind in KINDS:
        made = job_object(pretraining(), job_settings(kind=kind, namespace=cluster.namespace))
        made["spec"]["suspended"] = True
        assert 'unknown field "spec.suspended"' in refusal(cluster, made)


# --- CEL rules, those of the definitions (tests/jobs/test_schema.py lists them)


def test_rules_of_the_definitions_are_the_servers_too(cluster: Deployed) -> None:
    made = job_object(pretraining(), job_settings(kind="trainjob", namespace=cluster.namespace))

    def spoiled(**spec: Any) -> Object:
        return {**made, "spec": {**made["spec"], **spec}}

    long = {**made, "metadata": {**made["metadata"], "name": "a" * 64}}
    assert "no more than 63" in refusal(cluster, long)
    digit = {**made, "metadata": {**made["metadata"], "name": "9a"}}
    assert "metadata.name" in refusal(cluster, digit)
    assert "managedBy" in refusal(cluster, spoiled(managedBy="example.com/other"))
    twice = made["spec"]["runtimePatches"] * 2
    assert "Duplicate value" in refusal(cluster, spoiled(runtimePatches=twice))


# --- Pod Security: "restricted", which is more than the namespace of k8s/base asks for


def templates(made: Object) -> Iterator[Object]:
    """The pod templates in an object."""
    spec = made.get("spec") or {}
    if made["kind"] == "Pod":
        yield made
    for owner in (spec, spec.get("jobTemplate", {}).get("spec", {})):
        if "template" in owner and made["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob"):
            yield owner["template"]
    for replica in spec.get("pytorchReplicaSpecs", {}).values():
        yield replica["template"]


def pod(template: Object, namespace: str) -> Object:
    spec = copy.deepcopy(template["spec"])
    spec.pop("priorityClassName", None)  # none of this cluster's
    spec["serviceAccountName"] = "pods"  # one that is there
    labels = template["metadata"].get("labels", {})
    metadata = {"generateName": "admitted-", "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pods_of(cluster: Deployed, objects: Iterator[Object]) -> list[Object]:
    return unique(pod(t, cluster.namespace) for each in objects for t in templates(each))


@pytest.mark.parametrize("path", OVERLAYS)
def test_the_pods_of_every_overlay_are_admitted(cluster: Deployed, path: str) -> None:
    files = tuple(file for file in FILES if file.startswith(f"{path}/"))
    pods = pods_of(cluster, rendered(cluster, (path, *files)))
    assert len(cluster.dry_run(*pods)) == len(pods) > 1


@pytest.mark.parametrize("kind", ["pytorchjob", "job"])
def test_the_pods_of_every_launcher_are_admitted(cluster: Deployed, kind: str) -> None:
    pods = pods_of(cluster, launched(cluster, kind))
    assert len(cluster.dry_run(*pods)) == len(pods) > 30


def test_root_and_its_capabilities_are_admitted_where_the_namespace_says_so(
    cluster: Deployed,
) -> None:
    work, settings = every_work()["evaluate"], every_setting("job")[ROOT]
    made = job_object(work, settings)
    (root,) = pods_of(cluster, iter([made]))
    assert "IPC_LOCK" in refusal(cluster, root)
    with namespace_for("privileged") as privileged:
        privileged("create", "namespace", privileged.namespace)
        privileged("create", "serviceaccount", "pods")
        made["metadata"]["namespace"] = root["metadata"]["namespace"] = privileged.namespace
        assert len(privileged.dry_run(made, root)) == 2


def test_the_pods_of_trainjobs_are_admitted(cluster: Deployed) -> None:
    """What a TrainJob's patch makes of the pod of our runtime, as Trainer merges them."""
    runtime = training_runtime(job_settings())
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    base = pod({"metadata": {}, **job["template"]["spec"]["template"]}, cluster.namespace)
    base["metadata"]["name"] = "admitted"
    for name, settings in every_setting("trainjob").items():
        if name == ROOT:
            continue
        made = job_object(pretraining(), settings)["spec"]
        (patched,) = made["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
            "replicatedJobs"
        ]
        patch = patched["template"]["spec"]["template"]["spec"]
        (container,) = patch["containers"]
        container |= {key: made["trainer"][key] for key in ("image", "command", "args", "env")}
        container["resources"] = made["trainer"]["resourcesPerNode"]
        merged = cluster(
            *("patch", "--local", "-f", "-", "--type=strategic", "-o", "json"),
            *("-p", json.dumps({"spec": patch})),
            stdin=json.dumps(base),
        )
        (found,) = pods_of(cluster, iter([json.loads(merged)]))
        assert cluster.dry_run(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostNetwork": True}, "hostNetwork=true"),
        ({"securityContext": {}}, "runAsNonRoot"),
        ({"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}, "runAsUser=0"),
        ({"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}, "hostPath"),
    ],
)
def test_pods_that_could_do_more_are_not_admitted(
    cluster: Deployed, change: Object, said: str
) -> None:
    """Or the tests above would say nothing."""
    made = next(templates(job_object(pretraining(), job_settings(kind="job"))))
    spoiled = pod({**made, "spec": {**made["spec"], **change}}, cluster.namespace)
    if "volumes" in change:
        spoiled["spec"]["containers"][0]["volumeMounts"] = []
    message = refusal(cluster, spoiled)
    assert 'violates PodSecurity "restricted' in message
    assert said in message


@pytest.mark.parametrize("kind", ["pytorchjob", "job"])
def test_launchers_work_where_pods_must_be_restricted(
    kube: Deployed, launcher_config: Path, tmp_path: Path, kind: str
) -> None:
    restrict(kube)
    started = submit(launcher_config, tmp_path, "confined", "lines=3", f"kind={kind}")
    assert started.end() == 0, started.said


def test_why_the_namespace_of_ours_is_not_restricted(kube: Deployed) -> None:
    """The operator puts a container of its own before each worker, which says too little."""
    restrict(kube)
    work = Work("pretrain", ("pretrain",), "together", "0" * 16, trains=True)
    given = [*toy_settings("lines=100"), "nodes=2", f"namespace={kube.namespace}"]
    made = job_object(work, job_settings(given))
    kube.apply(made)
    name = made["metadata"]["name"]

    def refused() -> list[str]:
        events = kube.get("events")
        about = [e["message"] for e in events if e["involvedObject"]["name"] == name]
        return [message for message in about if "violates PodSecurity" in message]

    wait(refused, what=lambda: kube("get", "events"))
    message = refused()[0]
    assert 'container "init-pytorch"' in message
    assert 'container "pytorch"' not in message
    kube("delete", "pytorchjob", name)
