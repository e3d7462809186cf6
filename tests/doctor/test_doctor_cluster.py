"""``percmae doctor --cluster`` against an HTTP server that answers like a cluster in good order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from percmae.cli.verbs import main
from percmae.doctor.cluster import OLDEST_KUBERNETES, RIGHTS, doctor_cluster
from percmae.errors import ConfigError, UserError
from percmae.jobs.client import Refused, Unreachable
from percmae.jobs.names import KFP_SECRET

from .kube_server import DONE, NS, PODS, REVIEWS, KubeServer, lines, secret


def test_a_cluster_in_good_order(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor_cluster() is True
    out = capsys.readouterr().out
    assert "MISSING" not in out
    absent = [line for line in out.splitlines() if line.startswith("absent")]
    assert [line.split(":")[0][8:] for line in absent] == [
        "trainjobs.trainer.kubeflow.org",
        "nvidia.com/gpu to allocate",
    ]
    assert "operator: took up a PyTorchJob" in out
    assert "bucket s3://percmae: a pod writes, reads and deletes there" in out
    assert "hush" not in out, "keys are never shown"


MISSING = {
    "/apis/kubeflow.org/v1": (
        "pytorchjobs.kubeflow.org: not served in v1 (its group has: v1)",
        "kubectl apply --server-side -k",
    ),
    f"{NS}/serviceaccounts/percmae-train": (
        "service account percmae-train: none",
        "kubectl apply -k k8s/base/rights",
    ),
    f"{NS}/configmaps/percmae-store": (
        "ConfigMap percmae-store: none",
        "kubectl apply -k k8s/base/config",
    ),
    f"{NS}/secrets/percmae-store": (
        "Secret percmae-store: none",
        "kubectl -n percmae create secret generic percmae-store --from-literal=accesskey=",
    ),
}


@pytest.mark.parametrize("path", MISSING)
def test_each_missing_thing_is_one_line_with_its_cure(
    path: str, server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.objects[path]
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    found, fix = MISSING[path]
    assert line.startswith(f"{found}  → {fix}")


def test_without_the_namespace_nothing_in_it_is_looked_at(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.objects[NS]
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith("namespace percmae: none  → kubectl apply -k k8s/overlays/minimal")
    assert server.posted == []


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (secret(accesskey="percmae"), "without secretkey"),
        (secret(accesskey="", secretkey="x"), "without accesskey"),
        ({}, "without accesskey and secretkey"),
        (secret(accesskey="percmae", secretkey="CHANGE-ME"), "still the template's CHANGE-ME"),
    ],
)
def test_a_secret_that_will_not_do(
    data: dict[str, Any], found: str, server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.objects[f"{NS}/secrets/percmae-store"] = data
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith(f"Secret percmae-store: {found}  → kubectl -n percmae delete secret")


def test_minios_root_user_has_a_secret_of_its_own(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.objects[f"/apis/apps/v1{NS.removeprefix('/api/v1')}/statefulsets/minio"] = {}
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith(
        "Secret percmae-store-root: none  → kubectl -n percmae create secret generic "
        "percmae-store-root --from-literal=accesskey=root "
    )
    server.objects[f"{NS}/secrets/percmae-store-root"] = secret(accesskey="r", secretkey="s")
    assert doctor_cluster() is True


def test_no_secret_is_wanted_where_a_role_gives_the_keys(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.objects[f"{NS}/secrets/percmae-store"]
    assert doctor_cluster(overrides=["store_secret=null"]) is True
    assert "service account percmae-train has to have a role" in capsys.readouterr().out


def test_every_right_is_asked_for(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for group, resource, verbs in RIGHTS:
        if group == "trainer.kubeflow.org":
            continue
        for verb in verbs:
            server.denied = {("percmae-launcher", verb, resource)}
            server.statuses[PODS] = [DONE]
            assert doctor_cluster() is False
            (line,) = lines(capsys, "MISSING")
            name = f"{resource}.{group}" if group else resource
            assert line.startswith(f"percmae-launcher: {name}: may not {verb}  → kubectl apply -k")


def test_rights_that_may_not_be_asked_for_are_no_failure(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refused[REVIEWS] = (403, 'User "me" cannot create resource "subjectaccessreviews"')
    server.forbidden = ["/api/v1/nodes"]
    assert doctor_cluster() is True
    absent = lines(capsys, "absent")
    assert any(line.startswith("rights: may not look: ") for line in absent)
    assert any(line.startswith("gpus: may not look: ") for line in absent)


def test_gpus_are_needed_only_where_they_are_asked_for(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def node(name: str, gpus: int, product: str) -> dict[str, Any]:
        labels = {"nvidia.com/gpu.product": product}
        status = {"allocatable": {"nvidia.com/gpu": str(gpus)}}
        return {"metadata": {"name": name, "labels": labels}, "status": status}

    items = [node("a", 8, "H100"), node("b", 4, "A100")]
    server.objects["/api/v1/nodes"] = {"items": items}
    assert doctor_cluster(overrides=["gpus=8"]) is True
    assert "nvidia.com/gpu to allocate: 12 on 2 nodes" in capsys.readouterr().out
    server.statuses[PODS] = [DONE]
    assert doctor_cluster(overrides=["gpus=8", "nodes=2"]) is False
    (line,) = lines(capsys, "MISSING")
    assert "12 on 2 nodes; jobs want 2 nodes with 8" in line
    assert doctor_cluster(overrides=["gpus=1", "gpu_type=H200"]) is False
    (line,) = lines(capsys, "MISSING")
    assert "0 on 0 nodes with H200; jobs want 1 node" in line
    server.objects["/api/v1/nodes"] = {"items": []}
    assert doctor_cluster(overrides=["gpus=0"]) is True
    assert "nvidia.com/gpu" not in capsys.readouterr().out


def test_volumes_that_wait_for_a_class(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {"items": [{"metadata": {"name": "fast"}}]}
    server.objects["/apis/storage.k8s.io/v1/storageclasses"] = classes
    server.objects[f"{NS}/persistentvolumeclaims/minio"]["status"]["phase"] = "Pending"
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    key = "storageclass.kubernetes.io/is-default-class=true"
    assert line == (
        f"default StorageClass: none of fast  → kubectl annotate storageclass fast {key}"
    )


QUEUES = "/apis/kueue.x-k8s.io/v1beta2/namespaces/percmae/localqueues"


def test_a_queue_that_is_asked_for(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> str:
        server.statuses[PODS] = [DONE]
        fine = doctor_cluster(overrides=["queue=research"])
        (line,) = [each for each in capsys.readouterr().out.splitlines() if "LocalQueue" in each]
        assert line.startswith("ok " if fine else "MISSING")
        return line[8:]

    assert look().startswith("LocalQueue research: the cluster has no Kueue")
    version = {"groupVersion": "kueue.x-k8s.io/v1beta2"}
    server.objects["/apis/kueue.x-k8s.io"] = {"preferredVersion": version}
    assert look().startswith("LocalQueue research: none (kueue.x-k8s.io/v1beta2)  → kubectl apply")
    queue: dict[str, Any] = {"spec": {"clusterQueue": "gpus"}}
    server.objects[f"{QUEUES}/research"] = queue
    assert look().startswith("LocalQueue research: Kueue has not looked at it")
    stopped = {"type": "Active", "status": "False", "message": "ClusterQueue gpus doesn't exist"}
    queue["status"] = {"conditions": [stopped]}
    assert look().startswith("LocalQueue research: ClusterQueue gpus doesn't exist")
    queue["status"] = {"conditions": [{"type": "Active", "status": "True"}]}
    assert look() == "LocalQueue research: active, before ClusterQueue gpus"


KFP = "/api/v1/namespaces/kubeflow"


def api_server(image: str) -> dict[str, Any]:
    containers = [{"image": "docker.io/alpine:3.23.0"}, {"image": image}]
    return {"spec": {"template": {"spec": {"containers": containers}}}}


@pytest.fixture
def kfp(server: KubeServer) -> KubeServer:
    """The same beside Kubeflow Pipelines 2.17, as overlays/kfp leaves it."""
    for path in [path for path in server.objects if path.startswith(NS)]:
        server.objects[path.replace(NS, KFP)] = server.objects.pop(path)
    del server.objects[f"{KFP}/serviceaccounts/percmae-launcher"]
    server.objects[f"{KFP}/serviceaccounts/pipeline-runner"] = {}
    keys = server.objects.pop(f"{KFP}/secrets/percmae-store")
    server.objects |= {
        f"{KFP}/secrets/{KFP_SECRET}": keys,
        f"{KFP}/services/ml-pipeline": {},
        f"{KFP}/services/seaweedfs": {},
        "/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline": api_server(
            "ghcr.io/kubeflow/kfp-api-server:2.17.0"
        ),
    }
    at = {"AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow:9000"}
    server.objects[f"{KFP}/configmaps/percmae-store"] = {"data": at}
    for path in list(server.statuses):
        server.statuses[path.replace("/percmae/", "/kubeflow/")] = server.statuses.pop(path)
    server.statuses[f"{KFP}/pods"] = [DONE]
    return server


def test_beside_kfp_its_accounts_and_secret_count(
    kfp: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor_cluster(kfp=True) is True
    out = capsys.readouterr().out
    assert "Kubeflow Pipelines: 2.17.0 in kubeflow\n" in out
    assert f"Secret {KFP_SECRET}: has accesskey and secretkey\n" in out
    kfp.denied = {("pipeline-runner", "create", "pytorchjobs")}
    assert doctor_cluster(kfp=True) is False
    (line,) = lines(capsys, "MISSING")
    assert line.endswith("may not create  → kubectl apply -k k8s/overlays/kfp")


def test_beside_kfp_the_store_that_is_there_is_named(
    kfp: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = kfp.objects[f"{KFP}/configmaps/percmae-store"]
    config["data"]["AWS_ENDPOINT_URL"] = "http://minio-service.kubeflow:9000"
    assert doctor_cluster(kfp=True) is False
    (line,) = lines(capsys, "MISSING")
    assert line == (
        "ConfigMap percmae-store: http://minio-service.kubeflow:9000, but there is no Service "
        "minio-service in namespace kubeflow  → kubectl apply -k k8s/overlays/kfp"
    )
    config["data"]["AWS_ENDPOINT_URL"] = "http://seaweedfs.kubeflow.svc.cluster.local:8333"
    kfp.objects[f"{KFP}/services/minio-service"] = kfp.objects.pop(f"{KFP}/services/seaweedfs")
    assert doctor_cluster(kfp=True) is False
    (line,) = lines(capsys, "MISSING")
    assert line.endswith("no Service seaweedfs in namespace kubeflow  → kubectl apply -k "
                         "k8s/overlays/kfp-minio")  # fmt: skip
    del kfp.objects[f"{KFP}/services/minio-service"]
    assert doctor_cluster(kfp=True) is False
    assert lines(capsys, "MISSING")[0].endswith("kubectl apply -k k8s/overlays/kfp-s3")
    # What is no Service's address is for the pod to try.
    kfp.forbidden = ["/api/v1/namespaces/others"]
    for address in (
        "http://store.others",
        "https://s3.eu-west-1.amazonaws.com",
        "http://minio.lan",
        "http://10.0.0.1:9",
    ):
        config["data"]["AWS_ENDPOINT_URL"] = address
        assert doctor_cluster(kfp=True) is True


def test_beside_kfp_the_config_map_says_which_secret_and_bucket(
    kfp: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = kfp.objects[f"{KFP}/configmaps/percmae-store"]
    config["metadata"] = {
        "annotations": {"percmae.dev/secret": "mine", "percmae.dev/access-key": "id"}
    }
    config["data"]["PERCMAE_BUCKET"] = "s3://ours/percmae"
    kfp.objects[f"{KFP}/secrets/mine"] = secret(id="x", secretkey="y")
    assert doctor_cluster(kfp=True) is True
    out = capsys.readouterr().out
    assert (
        "Secret mine: has id and secretkey; submit, schedule and compile take --store-secret mine"
        in out
    )
    assert "bucket s3://ours/percmae: a pod writes" in out
    pod = next(body for path, body in kfp.posted if path == f"{KFP}/pods")
    assert "s3://ours/percmae" in pod["spec"]["containers"][0]["command"]
    assert doctor_cluster(kfp=True, overrides=["store_secret=absent"], store="s3://b") is False
    assert lines(capsys, "MISSING")[0].startswith("Secret absent: none")


def test_beside_kfp_that_is_too_old_or_not_there(
    kfp: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline"
    kfp.objects[path] = api_server("mirror/kfp-api-server:2.14.3")
    assert doctor_cluster(kfp=True) is False
    (line,) = lines(capsys, "MISSING")
    assert line == "Kubeflow Pipelines: 2.14.3 in kubeflow  → bring it to 2.15 or newer"
    kfp.objects[path] = api_server("mirror/kfp-api-server@sha256:" + "0" * 64)
    assert doctor_cluster(kfp=True) is True
    assert "does not say whether it is 2.15 or newer" in capsys.readouterr().out
    del kfp.objects[f"{KFP}/services/ml-pipeline"]
    assert doctor_cluster(kfp=True) is False
    assert lines(capsys, "MISSING")[0].startswith("Kubeflow Pipelines: no Service ml-pipeline in")


def test_a_namespace_of_ones_own_has_commands_of_its_own(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.objects["/api/v1/namespaces/mine"] = {}
    server.refused["/api/v1/namespaces/mine/pods"] = (403, "cannot create resource pods")
    assert doctor_cluster(namespace="mine", overrides=["kind=job"]) is False
    missing = lines(capsys, "MISSING")
    assert (
        "kubectl kustomize k8s/base/rights | sed 's/namespace: percmae/namespace: mine/'"
        in (missing[0])
    )


def test_a_cluster_that_is_too_old(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    major, minor = OLDEST_KUBERNETES
    server.objects["/version"] = {"major": "1", "minor": f"{minor}+", "gitVersion": "v1.x-cloud"}
    assert doctor_cluster() is True
    server.objects["/version"] |= {"minor": f"{minor - 1}+"}
    server.statuses[PODS] = [DONE]
    capsys.readouterr()
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith("Kubernetes: v1.x-cloud at http://127.0.0.1")
    assert line.endswith(f"→ use a cluster of Kubernetes {major}.{minor} or newer")


def test_a_token_that_is_not_known_is_one_error(server: KubeServer) -> None:
    server.token = "known"
    with pytest.raises(Refused, match="Unauthorized"):
        doctor_cluster()


def test_no_server_is_one_error(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url
    server.stop()
    with pytest.raises(Unreachable, match=f"no Kubernetes API server answers at {url}: .*refused"):
        doctor_cluster()
    assert main(["doctor", "--cluster"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("percmae: error: no Kubernetes API server answers at")
    assert len(err.splitlines()) == 1


def test_no_kubeconfig_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no cluster to use"):
        doctor_cluster()


def test_settings_are_checked_first(server: KubeServer) -> None:
    with pytest.raises(ConfigError, match=r"imge.*image"):
        doctor_cluster(overrides=["imge=x"])


def test_the_command_line(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", "gpus=0", "--timeout", "5"]) == 0
    del server.objects[f"{NS}/secrets/percmae-store"]
    assert main(["doctor", "--cluster", "--namespace", "percmae", "--timeout", "5"]) == 1
    capsys.readouterr()
    assert main(["doctor", "--kfp"]) == UserError.exit_code
    assert "add --cluster" in capsys.readouterr().err
