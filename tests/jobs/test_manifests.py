"""The files under k8s/: rendered without drift, built by kubectl, and fitting together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.validation import OLDEST, validate
from percmae import __version__
from percmae.cli.parser import build_parser
from percmae.command import parse
from percmae.config.load import VARIANTS, load_config
from percmae.data.archives import ARCHIVES
from percmae.doctor import cluster
from percmae.errors import ConfigError, UserError
from percmae.jobs import manifests
from percmae.jobs.manifests import FOLDERS, RUNTIME, Folder, render, write
from percmae.jobs.names import DIGEST_ANNOTATION, KFP_ACCOUNTS, LAUNCHER, Object
from percmae.jobs.schema import JobSettings
from percmae.jobs.spec import object_digest

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("base", "overlays/minimal", "overlays/gpu", "overlays/multi-node", "overlays/kfp")
# Several, such as the oldest that we support and one of today: PERCMAE_KUBECTL=/path/one:/path/two
GIVEN = os.environ.get("PERCMAE_KUBECTL", "").split(os.pathsep)
KUBECTLS = [path for path in GIVEN if path] or [shutil.which("kubectl")]
PLACE = {place.folder: place for place in FOLDERS}


def build(overlay: str, kubectl: str | None) -> list[Object]:
    if kubectl is None:
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(
        [kubectl, "kustomize", str(K8S / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing deprecated"
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def committed(place: Folder) -> dict[str, Object]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (K8S / place.folder).iterdir()}


def pods(objects: list[Object]) -> Iterator[Object]:
    for each in objects:
        spec = each.get("spec") or {}
        for owner in (spec, *(spec.get("pytorchReplicaSpecs") or {}).values()):
            if "template" in owner:
                yield owner["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


# --- rendered jobs


def test_committed_jobs_are_what_is_rendered(tmp_path: Path) -> None:
    """Otherwise: make manifests, in the same commit as its reason."""
    write(tmp_path)
    for place in FOLDERS:
        rendered = {path.name: path.read_text() for path in (tmp_path / place.folder).iterdir()}
        there = {path.name: path.read_text() for path in (K8S / place.folder).iterdir()}
        assert there.keys() == rendered.keys(), place.folder
        for name, text in rendered.items():
            assert there[name] == text, f"{place.folder}/{name} is out of date: make manifests"


def test_the_runtime_of_trainjobs_is_what_is_rendered(tmp_path: Path) -> None:
    write(tmp_path)
    text = (K8S / RUNTIME).read_text()
    assert text == (tmp_path / RUNTIME).read_text(), "out of date: make manifests"
    job = yaml.safe_load(text)
    validate(job)
    assert job["metadata"]["name"] == "percmae"


@pytest.mark.parametrize("folder", PLACE)
def test_there_is_a_job_for_every_stage_and_variant(folder: str) -> None:
    variants = {f"pretrain-{name.replace('_', '-')}" for name in VARIANTS}
    stages = {"ingest", "finetune", "probe", "evaluate"}
    sample = {"sample"} if PLACE[folder].sample else set()
    assert committed(PLACE[folder]).keys() == variants | stages | sample


@pytest.mark.parametrize("folder", PLACE)
def test_jobs_validate_strictly(folder: str) -> None:
    for name, job in committed(PLACE[folder]).items():
        validate(job)
        validate(job, OLDEST)
        assert job["metadata"]["name"] == name, "kubectl logs takes the file's name"
        assert job["metadata"]["annotations"][DIGEST_ANNOTATION] == object_digest(job)


@pytest.mark.parametrize("folder", PLACE)
def test_jobs_say_what_the_command_line_takes(folder: str) -> None:
    for name, job in committed(PLACE[folder]).items():
        for pod in pods([job]):
            command = pod["containers"][0]["command"]
            verb = job["metadata"]["labels"]["app.kubernetes.io/component"]
            args = parse(build_parser(), command[command.index(verb) :])
            assert args.verb == verb
            if name.startswith("pretrain-"):
                config = load_config(
                    args.variant, args.recipe, "pretrain", None, args.overrides, args.tag, args.size
                )
                assert config.variant.replace("_", "-") == name.removeprefix("pretrain-")
                assert config.run_name == f"{PLACE[folder].dataset}_{config.variant}"


def test_later_jobs_read_what_earlier_ones_write() -> None:
    for place in FOLDERS:
        jobs = committed(place)

        def option(name: str, job: str, jobs: dict[str, Object] = jobs) -> str:
            command = next(pods([jobs[job]]))["containers"][0]["command"]
            return str(command[command.index(f"--{name}") + 1])

        source = "sample" if place.sample else "ingest"
        data = f"{option('to', source)}/manifest.json"
        for job in set(jobs) - {"ingest", "sample"}:
            assert option("data", job) == data
        run = f"{option('to', 'pretrain-mae')}/{option('tag', 'pretrain-mae')}_mae"
        assert option("run", "finetune") == option("run", "probe") == run
        assert option("run", "evaluate") == f"{run}_finetune"


def test_the_sample_is_made_before_it_is_read_and_without_keys() -> None:
    pod = committed(PLACE["jobs"])["sample"]["spec"]["template"]["spec"]
    (before,) = pod["initContainers"]
    out = before["command"][before["command"].index("--out") + 1]
    reads = [part for part in pod["containers"][0]["command"] if part.startswith("/tmp")]
    assert {Path(part).parent for part in reads} == {Path(out)}
    assert {Path(part).name for part in reads} == set(ARCHIVES.values())
    assert "secretKeyRef" not in str(before)
    assert before["volumeMounts"] == pod["containers"][0]["volumeMounts"]


def test_only_gpu_overlays_ask_for_gpus() -> None:
    assert "nvidia.com/gpu" not in str(committed(PLACE["jobs"]))
    for folder in ("overlays/gpu/jobs", "overlays/multi-node/jobs"):
        for name, job in committed(PLACE[folder]).items():
            asked = "nvidia.com/gpu" in str(job)
            assert asked == (name != "ingest"), f"{folder}/{name}"


def test_own_settings_reach_every_job_and_need_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = "registry.example.com/percmae-train@sha256:" + "0" * 64
    written = write(tmp_path, [f"image={image}", "kind=job", "nodes=1"])
    *jobs, runtime = written
    assert len(jobs) == sum(len(list(render(place))) for place in FOLDERS)
    assert runtime == tmp_path / RUNTIME
    assert f"image: {image}\n" in runtime.read_text()
    for path in jobs:
        job = yaml.safe_load(path.read_text())
        assert job["kind"] == "Job"
        assert {c["image"] for pod in pods([job]) for c in containers(pod)} == {image}
    monkeypatch.setattr("sys.argv", ["manifests", "kind=job"])
    monkeypatch.chdir(K8S.parent)
    with pytest.raises(SystemExit) as ended:
        manifests.main()
    assert ended.value.code == UserError.exit_code
    with pytest.raises(ConfigError, match=r"imge.*did you mean.*image"):
        write(tmp_path, ["imge=x"])


def test_files_no_longer_made_are_removed_and_yours_are_not(tmp_path: Path) -> None:
    write(tmp_path)
    jobs = tmp_path / "jobs"
    (jobs / "pretrain-old.yaml").write_text((jobs / "pretrain-mae.yaml").read_text())
    (jobs / "mine.yaml").write_text("kind: Pod\n")
    write(tmp_path)
    assert not (jobs / "pretrain-old.yaml").exists()
    assert (jobs / "mine.yaml").exists()


# --- kustomizations


@pytest.mark.parametrize("kubectl", KUBECTLS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_build_and_validate(overlay: str, kubectl: str | None) -> None:
    objects = build(overlay, kubectl)
    for each in objects:
        if each["kind"] != "LocalQueue":  # Kueue's
            validate(each)
            validate(each, OLDEST)
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    namespace = "kubeflow" if overlay.endswith("kfp") else "percmae"
    for each in objects:
        expected = None if each["kind"] == "Namespace" else namespace
        assert each["metadata"].get("namespace") == expected
        for subject in each.get("subjects", []):
            assert subject["namespace"] == namespace


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_kubectl_builds_the_same(overlay: str) -> None:
    if len(KUBECTLS) < 2:
        pytest.skip("give several in PERCMAE_KUBECTL to compare what they build")

    first, *others = (unordered(build(overlay, kubectl)) for kubectl in KUBECTLS)
    for other in others:
        assert other == first


def unordered(value: Any) -> Any:
    """Lists of named things by name: patched variables come first or last as kubectl likes."""
    if isinstance(value, dict):
        return {key: unordered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted((unordered(inner) for inner in value), key=_name)
    return value


def _name(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    return f"{value.get('kind')} {value.get('name') or value.get('metadata', {}).get('name')}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_referred_to_is_there(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    secret = "mlpipeline-minio-artifact" if overlay.endswith("kfp") else "percmae-store"
    jobs = [job for place in FOLDERS if place.folder.startswith(overlay) for job in _jobs(place)]
    assert list(pods(objects))
    for pod in pods([*objects, *jobs]):
        assert pod["serviceAccountName"] in of_kind(objects, "ServiceAccount")
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in of_kind(objects, "PersistentVolumeClaim")
        for container in containers(pod):
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in of_kind(objects, "ConfigMap")
            for entry in container["env"]:
                if "valueFrom" in entry:
                    assert entry["valueFrom"]["secretKeyRef"]["name"] == secret
    assert of_kind(objects, "Secret") == {}, "no secret is committed"
    for job in jobs:
        queue = job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        assert queue is None or queue in of_kind(objects, "LocalQueue")


def _jobs(place: Folder) -> list[Object]:
    return list(committed(place).values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_confined(overlay: str) -> None:
    for pod in pods(build(overlay, KUBECTLS[0])):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_openshift_gives_users_and_groups_itself(overlay: str, tmp_path: Path) -> None:
    parts = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / overlay, tmp_path)],
        "components": [os.path.relpath(K8S / "components/openshift", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    left = [pod["securityContext"] for pod in pods(build(str(tmp_path), KUBECTLS[0]))]
    assert left
    for security in left:
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
        assert security["runAsNonRoot"] is True


def test_the_oldest_kubernetes_is_stated() -> None:
    said = f"Kubernetes {'.'.join(map(str, cluster.OLDEST_KUBERNETES))} or newer"
    assert said in (K8S / "README.md").read_text()
    assert said in (K8S.parent / "README.md").read_text()


def test_images_are_this_version_or_pinned_by_digest() -> None:
    ours = {f"percmae-{name}:{__version__}" for name in ("train", "pipeline")}
    objects = [
        *build("base", KUBECTLS[0]),
        *(job for place in FOLDERS for job in _jobs(place)),
    ]
    images = {c["image"] for pod in pods(objects) for c in containers(pod)}
    assert images & ours
    for image in images - ours:
        assert re.search(r":RELEASE\.[^@]+@sha256:[0-9a-f]{64}$", image), image


def test_the_list_of_images_is_whole() -> None:
    done = subprocess.run(
        ["make", "--silent", "image-list"], cwd=K8S.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split()
    assert {f"percmae-{name}:{__version__}" for name in ("train", "pipeline")} <= set(listed)
    for overlay in OVERLAYS:
        used = {c["image"] for pod in pods(build(overlay, KUBECTLS[0])) for c in containers(pod)}
        assert used <= set(listed), overlay
    assert len(listed) == len(set(listed))


def test_the_launcher_has_the_rights_that_doctor_asks_for_and_no_others() -> None:
    objects = build("base", KUBECTLS[0])
    granted = [
        (rule["apiGroups"], rule["resources"], tuple(rule["verbs"]))
        for rule in of_kind(objects, "Role")[LAUNCHER]["rules"]
    ]
    assert granted == [([group], [resource], verbs) for group, resource, verbs in cluster.RIGHTS]
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == {}
    (binding,) = of_kind(objects, "RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == [LAUNCHER]


def test_kfp_steps_may_launch() -> None:
    objects = build("overlays/kfp", KUBECTLS[0])
    assert not {"Namespace", "StatefulSet", "ResourceQuota"} & {o["kind"] for o in objects}
    binding = of_kind(objects, "RoleBinding")["percmae-steps"]
    assert [subject["name"] for subject in binding["subjects"]] == list(KFP_ACCOUNTS)


def test_the_example_of_the_secret_is_the_one_that_pods_read() -> None:
    example = yaml.safe_load((K8S / "base/secret.example.yaml").read_text())
    validate(example)
    defaults = JobSettings()
    assert example["metadata"]["name"] == defaults.store_secret
    keys = {defaults.store_access_key, defaults.store_secret_key}
    assert example["stringData"] == dict.fromkeys(keys, "CHANGE-ME")


# --- limits and network


QUANTITY = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert match, text
    return int(match[1]) * QUANTITY[match[2]]


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/multi-node"])
def test_the_largest_job_fits_into_the_quota(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    hard = of_kind(objects, "ResourceQuota")["percmae"]["spec"]["hard"]
    assert not any("limits.cpu" in key for key in hard), "jobs have no CPU limit"
    for job in _jobs(PLACE[f"{overlay}/jobs"]):
        if job["kind"] != "PyTorchJob":
            continue
        used = dict.fromkeys(("cpu", "memory", "nvidia.com/gpu"), 0.0)
        for replica in job["spec"]["pytorchReplicaSpecs"].values():
            (container,) = replica["template"]["spec"]["containers"]
            for key in used:
                asked = quantity(container["resources"]["requests"][key])
                used[key] += replica["replicas"] * asked
        # Beside it there is room for MinIO and TensorBoard.
        for pod in pods(objects):
            for container in containers(pod):
                for key in ("cpu", "memory"):
                    used[key] += quantity(container["resources"]["requests"][key])
        for key, value in used.items():
            assert value <= quantity(hard[f"requests.{key}"]), (job["metadata"]["name"], key)
    (defaults,) = of_kind(objects, "LimitRange")["percmae"]["spec"]["limits"]
    assert "cpu" not in defaults["default"], "it would become a CPU limit of trainings"
    assert "max" not in defaults


def test_policies_let_every_job_reach_the_store_and_each_other() -> None:
    objects = build("base", KUBECTLS[0])
    policies = of_kind(objects, "NetworkPolicy")
    jobs = [job for place in FOLDERS for job in _jobs(place)]
    labels = [job["metadata"]["labels"] for job in jobs]
    labels += [t["metadata"]["labels"] for t in _templates(objects) if "percmae" in str(t["spec"])]
    store = policies["store"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    use = policies["use-the-store"]["spec"]["podSelector"]["matchExpressions"][0]
    for each in labels:
        assert store.items() <= each.items()
        if each["app.kubernetes.io/name"] != "minio":
            assert each[use["key"]] in use["values"], each
    together = policies["train-together"]["spec"]["podSelector"]["matchExpressions"][0]
    assert together["values"] == ["pretrain", "finetune", "probe"]
    minio = of_kind(objects, "StatefulSet")["minio"]["spec"]["template"]["metadata"]["labels"]
    selector = policies["store"]["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= minio.items()


def _templates(objects: list[Object]) -> list[Object]:
    return [o["spec"]["template"] for o in objects if "template" in (o.get("spec") or {})]
