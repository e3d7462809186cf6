"""The jobs under k8s/: rendered without drift, valid, and fitting together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.validation import OLDEST, validate
from percmae.cli.parser import build_parser
from percmae.command import parse
from percmae.config.load import VARIANTS, load_config
from percmae.data.archives import ARCHIVES
from percmae.errors import ConfigError, UserError
from percmae.jobs import manifests
from percmae.jobs.manifests import FOLDERS, KFP_ARCHIVES, RUNTIME, render, write
from percmae.jobs.names import (
    BUCKET,
    DIGEST_ANNOTATION,
    KFP_SECRET,
    Object,
)
from percmae.jobs.spec import object_digest

from .kustomized import (
    K8S,
    KUBECTLS,
    NAMESPACES,
    PLACE,
    build,
    committed,
    containers,
    of_kind,
    pods,
)

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


def test_the_archives_for_kfp_are_what_is_rendered(tmp_path: Path) -> None:
    write(tmp_path)
    text = (K8S / KFP_ARCHIVES).read_text()
    assert (tmp_path / KFP_ARCHIVES).read_text() == text
    job = yaml.safe_load(text)
    validate(job)
    objects = build("overlays/kfp", KUBECTLS[0])
    assert job["metadata"]["namespace"] == NAMESPACES["overlays/kfp"]
    (pod,) = pods([job])
    (container,) = containers(pod)
    assert container["envFrom"][0]["configMapRef"]["name"] in of_kind(objects, "ConfigMap")
    secrets = [e["valueFrom"]["secretKeyRef"]["name"] for e in container["env"] if "valueFrom" in e]
    assert secrets == [KFP_SECRET] * 3
    # Where the pipeline's own defaults look for them.
    assert container["command"][2:] == [
        *("percmae", "sample-data", "--out", f"{BUCKET}/archives"),
        *("--source", "mnist"),
    ]


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
    stages = {"ingest", "ingest-images", "finetune", "probe", "evaluate"}
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
        for job in set(jobs) - {"ingest", "ingest-images", "sample"}:
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
            assert asked == (not name.startswith("ingest")), f"{folder}/{name}"


def test_own_settings_reach_every_job_and_need_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = "registry.example.com/percmae-train@sha256:" + "0" * 64
    written = write(tmp_path, [f"image={image}", "kind=job", "nodes=1"])
    *jobs, runtime = written
    assert len(jobs) == sum(len(list(render(place))) for place in FOLDERS) + 1  # KFP_ARCHIVES
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
