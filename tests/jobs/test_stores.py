"""The stores that overlays choose from: MinIO or SeaweedFS in the cluster, or one elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from jobs.validation import OLDEST, validate
from percmae.errors import StoreAccessError, UserError
from percmae.jobs.manifests import FOLDERS
from percmae.jobs.names import STORE, STORE_ROOT, Object
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.local_store import server as local_store
from percmae.local_store.process import Ports
from percmae.storage import StorePath, StoreSettings, bucket, users

from .kustomized import K8S, KUBECTLS, build, committed, containers, of_kind, pods, with_components
from .works import pretraining

IN_CLUSTER = ("overlays/minimal", "overlays/gpu")
MINIO, SEAWEEDFS = "../../components/store/minio", "../../components/store/seaweedfs"


# --- SeaweedFS in MinIO's place


def on_seaweedfs(overlay: str, folder: Path) -> list[Object]:
    """An overlay whose one line was changed."""
    shutil.copytree(K8S, folder / "k8s", ignore=shutil.ignore_patterns("rendered", "jobs"))
    file = folder / "k8s" / overlay / "kustomization.yaml"
    assert file.read_text().count(MINIO) == 1
    file.write_text(file.read_text().replace(MINIO, SEAWEEDFS))
    return build(str(file.parent), KUBECTLS[0])


@pytest.mark.parametrize("overlay", IN_CLUSTER)
def test_seaweedfs_takes_minios_place_and_nothing_else_changes(
    overlay: str, tmp_path: Path
) -> None:
    before, after = build(overlay, KUBECTLS[0]), on_seaweedfs(overlay, tmp_path)
    for each in after:
        validate(each)
        validate(each, OLDEST)
    (store,) = of_kind(after, "StatefulSet").values()
    assert store["metadata"]["name"] == "seaweedfs"
    own = ("StatefulSet", "PersistentVolumeClaim", "Service", "Job")
    others = [each for each in before if each["kind"] not in own]
    assert [each for each in after if each["kind"] not in own] == others
    # What the overlay asks for reaches either of them.
    (claim,), (was,) = (of_kind(o, "PersistentVolumeClaim").values() for o in (before, after))
    assert claim["spec"] == was["spec"]
    (old,) = of_kind(before, "StatefulSet").values()
    resources = [s["spec"]["template"]["spec"]["containers"][0]["resources"] for s in (store, old)]
    assert resources[0] == resources[1]
    # At the same address.
    service = of_kind(after, "Service")["minio"]
    pod = store["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0]["ports"]}
    assert [(p["port"], ports[p["targetPort"]]) for p in service["spec"]["ports"]] == [(9000, 9000)]
    # Without a root user there is nobody to make another.
    assert (
        "initContainers" not in of_kind(after, "Job")["percmae-bucket"]["spec"]["template"]["spec"]
    )
    assert STORE_ROOT not in str(after)
    for container in containers(pod["spec"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


@contextmanager
def started(
    command: list[str], environment: dict[str, str], folder: Path, probe: str
) -> Iterator[None]:
    """A store of the manifests as a process of this machine, for the length of a block."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                with urlopen(probe, timeout=5) as answer:
                    assert answer.status == 200
                    break
            except URLError:
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def test_the_command_of_seaweedfs_serves_its_bucket_to_its_key_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both containers' commands as the manifest has them, with ports and folders of here."""
    (store,) = of_kind(on_seaweedfs("overlays/minimal", tmp_path), "StatefulSet").values()
    pod = store["spec"]["template"]["spec"]
    (keys,), (main,) = pod["initContainers"], pod["containers"]
    (tmp_path / "data").mkdir()
    ports = Ports.choose()
    places = {"/config": str(tmp_path), "/data": str(tmp_path / "data"), "0.0.0.0": "127.0.0.1"}
    places |= {"s3.port=9000": f"s3.port={ports.s3}", "$(PERCMAE_BUCKET)": "s3://percmae"}

    def here(command: list[str]) -> list[str]:
        for there, place in places.items():
            command = [word.replace(there, place) for word in command]
        return command

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "percmae")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'with-"quotes"-inside')
    monkeypatch.setattr("sys.argv", here(keys["command"][4:]))
    with pytest.raises(SystemExit) as ended:
        users.main()
    assert ended.value.code == 0
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0
    # (The ports of its other parts are nobody's business there; here others may have them.)
    flags = [flag for flag in ports.flags() if not flag.startswith("-s3.")]
    weed, *rest = here(main["command"])
    assert weed == "weed"
    endpoint = f"http://127.0.0.1:{ports.s3}"
    probes = {
        main[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    (path,) = probes
    # Its environment as well: keys in it would be those of a root user.
    environment = {each["name"]: each["value"] for each in main["env"]}
    assert "envFrom" not in main
    command = [local_store._binary(), *rest, *flags]
    with started(command, environment, tmp_path, endpoint + path):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        assert bucket.setup_bucket("s3://percmae") is True
        bucket.check_bucket("s3://percmae")
        with pytest.raises(StoreAccessError, match="does not let the access key 'percmae' create"):
            bucket.setup_bucket("s3://other")
        wrong = StoreSettings(endpoint, "percmae", "wrong", region="us-east-1", retry_seconds=5)
        with pytest.raises(StoreAccessError, match="refuses the secret key"):
            StorePath("s3://percmae/x", wrong).write_text("x")
    for socket in ports.sockets():
        socket.unlink(missing_ok=True)


# --- MinIO's root user, and the user of the bucket


def test_minios_root_user_is_known_to_minio_and_to_what_makes_the_user() -> None:
    for overlay in IN_CLUSTER:
        objects = build(overlay, KUBECTLS[0])
        jobs = [job for place in FOLDERS for job in committed(place).values()]
        knows = [
            c["name"]
            for p in pods([*objects, *jobs])
            for c in containers(p)
            if STORE_ROOT in str(c)
        ]
        assert sorted(knows) == ["minio", "user"]
        policy = of_kind(objects, "NetworkPolicy")["percmae-store"]["spec"]
        assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [9000]


def test_rights_are_for_one_bucket() -> None:
    document = users.policy("mine")
    places = {resource for each in document["Statement"] for resource in each["Resource"]}
    assert places == {"arn:aws:s3:::mine", "arn:aws:s3:::mine/*"}
    actions = {action for each in document["Statement"] for action in each["Action"]}
    assert not any("*" in action or "DeleteBucket" in action for action in actions)


def test_a_user_of_minios_may_use_its_bucket_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = os.environ.get("PERCMAE_TEST_MINIO")
    if not program:
        pytest.skip("PERCMAE_TEST_MINIO names no program")
    endpoint = f"http://127.0.0.1:{Ports.choose().s3}"
    root = {"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "rootrootroot", "HOME": str(tmp_path)}
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "root")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rootrootroot")
    address = urlsplit(endpoint).netloc
    command = [program, "server", str(tmp_path / "data"), "--address", address]
    with started(command, root, tmp_path, f"{endpoint}/minio/health/ready"):
        with pytest.raises(UserError, match="MinIO's root user's, 'root': give them another name"):
            users.make_minio_user("s3://percmae", "root", "of-the-jobs")
        with pytest.raises(StoreAccessError, match=r"makes no user for the jobs .*length"):
            users.make_minio_user("s3://percmae", "percmae", "short")
        users.make_minio_user("s3://percmae", "percmae", "of-the-jobs")
        mine = StoreSettings(endpoint, "percmae", "of-the-jobs", region="us-east-1")
        StorePath("s3://percmae/x", mine).write_text("x")
        users.make_minio_user("s3://percmae", "percmae", "another-one")  # and again
        mine = StoreSettings(endpoint, "percmae", "another-one", region="us-east-1")
        assert StorePath("s3://percmae/x", mine).read_text() == "x"
        StorePath("s3://percmae/x", mine).delete()
        StorePath("s3://other").prepare()
        with pytest.raises(StoreAccessError, match="does not let the access key 'percmae'"):
            StorePath("s3://other/x", mine).write_text("x")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "percmae")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-one")
        with pytest.raises(StoreAccessError, match=r"does not let the access key 'percmae'|Denied"):
            users.make_minio_user("s3://percmae", "third", "of-the-third")


def test_keys_that_are_not_given_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(users.ACCESS_VARIABLE, raising=False)
    monkeypatch.setattr("sys.argv", ["users", "minio", "s3://percmae"])
    with pytest.raises(SystemExit) as ended:
        users.main()
    assert ended.value.code == UserError.exit_code
    assert users.ACCESS_VARIABLE in capsys.readouterr().err
    with pytest.raises(UserError, match="not in a store"):
        users.seaweedfs_config("/tmp/x", StoreSettings("http://127.0.0.1", "a", "b"))


# --- a store elsewhere


def test_nothing_of_a_store_of_our_own_is_beside_an_external_one() -> None:
    for overlay in ("overlays/external-s3", "overlays/multi-node"):
        objects = build(overlay, KUBECTLS[0])
        assert not of_kind(objects, "StatefulSet")
        assert not of_kind(objects, "PersistentVolumeClaim")
        assert "minio" not in json.dumps(objects)
    assert {"LocalQueue", "ResourceQuota"} <= {o["kind"] for o in objects}
    assert (
        of_kind(objects, "ResourceQuota")["percmae"]["spec"]["hard"]["requests.nvidia.com/gpu"]
        == "32"
    )


def test_a_token_comes_along_where_the_secret_has_one() -> None:
    reference = {"name": STORE, "key": "sessiontoken", "optional": True}
    read = [container(job) for job in (job_object(pretraining(), job_settings([])),)]
    objects = build("overlays/external-s3", KUBECTLS[0])
    read += [c for p in pods(objects) for c in containers(p) if "AWS_ACCESS_KEY_ID" in str(c)]
    assert {c["name"] for c in read} == {"pytorch", "bucket", "follow"}
    for each in read:
        env = {entry["name"]: entry for entry in each["env"]}
        assert env["AWS_SESSION_TOKEN"]["valueFrom"] == {"secretKeyRef": reference}


def test_ones_own_token_goes_before() -> None:
    own = {"name": "AWS_SESSION_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "t"}}}
    made = container(job_object(pretraining(), job_settings([], env=[own])))
    assert [each for each in made["env"] if each["name"] == "AWS_SESSION_TOKEN"] == [own]


def container(job: Object) -> Object:
    return next(pods([job]))["containers"][0]


def test_with_a_role_no_pod_asks_for_a_secret(tmp_path: Path) -> None:
    objects = with_components("overlays/external-s3", ["components/workload-identity"], tmp_path)
    for each in objects:
        validate(each)
    assert "secretKeyRef" not in str(objects)
    account = of_kind(objects, "ServiceAccount")["percmae-train"]
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith(
        "arn:aws:iam:"
    )
    assert account["automountServiceAccountToken"] is False
    assert {pod["serviceAccountName"] for pod in pods(objects)} == {"percmae-train"}
