"""What can be told of the images without building them: the Dockerfile, its lists, its builder."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from dockerfile import DOCKER, read_dockerfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from percmae import __version__
from percmae.jobs.schema import TRAIN_IMAGE, USER

ROOT = DOCKER.parent
FILE = read_dockerfile()
IMAGES = ("train", "pipeline")
SBOM = "/usr/share/percmae/sbom.json"
IN_THE_IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.13",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lists() -> ModuleType:
    """docker/requirements.py."""
    spec = importlib.util.spec_from_file_location("lists", DOCKER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_base_is_a_stage_or_pinned() -> None:
    known: set[str] = set()
    for stage in FILE.stages.values():
        assert stage.base in known | {"${BASE_IMAGE}", "scratch"}, stage.base
        known.add(stage.name)
    # A full version (or a digest): such tags are not moved to another Python or Debian.
    pinned = r"docker\.io/library/python(:\d+\.\d+\.\d+-slim-bookworm|@sha256:[0-9a-f]{64})"
    assert re.fullmatch(pinned, FILE.args["BASE_IMAGE"])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_does_not_run_as_root(image: str) -> None:
    users = [user for stage in FILE.line(image) for user in stage.all("USER")]
    assert users[-1] == f"{USER}:{USER}"
    made = " ".join(step for stage in FILE.line(image) for step in stage.all("RUN"))
    assert f"useradd --uid {USER} " in made


@pytest.mark.parametrize("image", IMAGES)
def test_settings_of_a_private_index_stay_out_of_an_image(image: str) -> None:
    seen = set().union(*(stage.args() for stage in FILE.line(image)))
    assert not {name for name in seen if name.startswith("PIP_") or name.endswith("_URL")}
    installing = [s for s in FILE.stages.values() if any(" install " in r for r in s.all("RUN"))]
    assert {"PIP_INDEX_URL"} & set().union(*(stage.args() for stage in installing))


def test_nothing_is_fetched_by_address() -> None:
    for stage in FILE.stages.values():
        assert not stage.all("ADD")
        for step in stage.all("RUN"):
            assert not re.search(r"\b(curl|wget)\b", step)


def test_packages_are_installed_before_the_source_is_there() -> None:
    steps = FILE.stages["percmae"].steps
    install = next(i for i, (_, rest) in enumerate(steps) if " install " in rest)
    assert install < steps.index(("COPY", "percmae percmae"))
    for stage in FILE.stages.values():
        if stage.name.endswith("-packages") or stage.name == "torch":
            # Lists only: otherwise every change of the source would install everything again.
            copied = [path for rest in stage.all("COPY") for path in rest.split()[:-1]]
            assert copied
            assert all(path.endswith(".lock") for path in copied), stage.name


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sent = [
        str(path.relative_to(ROOT))
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
        for path in ROOT.glob(line[1:])
    ]
    copied = {source for image in IMAGES for source in mounted(image)}
    for stage in FILE.stages.values():
        for rest in stage.all("COPY"):
            if not rest.startswith("--from="):
                copied |= set(rest.split()[:-1])
    assert copied == set(sent)
    assert all((ROOT / path).exists() for path in copied)
    # The packages that pyproject.toml says are installed.
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= copied


def mounted(image: str) -> list[str]:
    """What of the checkout an image's own steps see, and do not keep."""
    steps = " ".join(FILE.stages[image].all("RUN"))
    return re.findall(r"--mount=type=bind,source=([^, ]+),", steps)


def test_an_image_lists_what_it_holds_before_what_changes_with_the_source() -> None:
    for image in IMAGES:
        assert mounted(image) == ["docker/sbom.py"]
        steps = FILE.stages[image].steps
        made = next(i for i, (_, rest) in enumerate(steps) if "sbom.py" in rest)
        packages = [i for i, (_, rest) in enumerate(steps) if "-packages /added" in rest]
        assert max(packages) < made < steps.index(("COPY", "--from=percmae /added /"))
        assert f"> {SBOM}" in steps[made][1]
        (label,) = FILE.stages[image].all("LABEL")
        assert f'dev.percmae.sbom="{SBOM}"' in label
        ((_, copied),) = FILE.stages[f"{image}-sbom"].steps
        assert copied == f"--from={image} {SBOM} /percmae-{image}.cdx.json"


def test_both_images_have_the_same_labels_and_end_alike() -> None:
    labels = {}
    for image in IMAGES:
        (text,) = FILE.stages[image].all("LABEL")
        labels[image] = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', text))
        assert labels[image]["title"] == f"percmae-{image}"
        assert labels[image].pop("licenses") == PROJECT["project"]["license"]
        steps = [step for step in FILE.stages[image].steps if step[0] not in ("ARG", "LABEL")]
        # Last, and the same in both: what changes with the source.
        assert steps[-2:] == [("COPY", "--from=percmae /added /"), ("USER", f"{USER}:{USER}")]
    assert labels["train"].keys() == labels["pipeline"].keys()
    given = {"version", "revision", "created", "source"}
    assert all(labels["train"][name] == f"${name.upper()}" for name in given)


def test_torch_is_a_version_that_percmae_takes() -> None:
    defaults = dict(arg.split("=", 1) for arg in FILE.stages["torch"].all("ARG") if "=" in arg)
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["project"]["dependencies"])}
    assert ranges["torch"].contains(defaults["TORCH_VERSION"])
    assert ranges["torchvision"].contains(defaults["TORCHVISION_VERSION"])


def test_lists_come_from_the_project(lists: ModuleType) -> None:
    core = set(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(lists.requirements(PROJECT, "train")) == core | set(extras["mlflow"])
    pipeline = set(lists.requirements(PROJECT, "pipeline"))
    assert set(extras["pipelines"]) < pipeline
    left_out = core - pipeline
    assert {lists.name_of(requirement) for requirement in left_out} == set(lists.TRAINING_ONLY)
    assert set(lists.requirements(PROJECT, "data")) < set(extras["local"])
    assert lists.requirements(PROJECT, "build") == PROJECT["build-system"]["requires"]


# --- lists of versions and hashes


@pytest.fixture(scope="module")
def locks() -> dict[str, dict[str, list[Requirement]]]:
    """docker/*.lock: name of the list → package → versions; each for some machines."""
    found: dict[str, dict[str, list[Requirement]]] = {}
    for file in DOCKER.glob("*.lock"):
        packages = found[file.stem] = {}
        for line in file.read_text().replace("\\\n", "").splitlines():
            if not line.startswith("#"):
                requirement, *hashes = line.split(" --hash=")
                assert hashes, line
                assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each) for each in hashes), line
                made = Requirement(requirement)
                packages.setdefault(canonicalize_name(made.name), []).append(made)
    return found


LISTS = {
    "build": ("build",),
    "train": ("train", "torch", "torch-cuda"),
    "data": ("data",),
    "pipeline": ("pipeline",),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_has_all_that_is_asked_for(
    kind: str, lists: ModuleType, locks: dict[str, dict[str, list[Requirement]]]
) -> None:
    """Otherwise: make lock, in the same commit as its reason."""
    for wanted in map(Requirement, lists.requirements(PROJECT, kind)):
        name = canonicalize_name(wanted.name)
        found = [each for lock in LISTS[kind] for each in locks[lock].get(name, ())]
        assert found, f"{name} is in no list: make lock"
        for each in found:
            (pin,) = each.specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), f"{each}, not {wanted}: make lock"
        # One of its versions, and one alone, is for the Python of the images.
        fits = [e for e in found if e.marker is None or e.marker.evaluate(IN_THE_IMAGE)]
        assert len(fits) == 1, found


def test_lists_go_together(locks: dict[str, dict[str, list[Requirement]]]) -> None:
    assert locks.keys() == {path.stem for path in DOCKER.glob("*.lock")}
    parts = [set(locks[name]) for name in LISTS["train"]]
    assert sum(map(len, parts)) == len(set().union(*parts)), "installed one above the other"
    # The same version in both images, of all that both have.
    train = {name: pins for part in LISTS["train"] for name, pins in locks[part].items()}
    for name in train.keys() & locks["pipeline"].keys():
        assert {r.specifier for r in train[name]} == {
            r.specifier for r in locks["pipeline"][name]
        }, name
    assert not {"torch", "kfp"} & set(locks["torch"])
    assert "torch" not in locks["pipeline"]
    assert "kfp" not in train


def test_torch_is_the_one_that_is_locked(locks: dict[str, dict[str, list[Requirement]]]) -> None:
    defaults = dict(arg.split("=", 1) for arg in FILE.stages["torch"].all("ARG") if "=" in arg)
    assert defaults["TORCH_LOCK"] == "torch-cuda.lock"
    for name in ("torch", "torchvision"):
        (made,) = locks["torch-cuda"][name]
        assert str(made.specifier) == f"=={defaults[f'{name.upper()}_VERSION']}", "make lock"


def test_everything_is_installed_by_its_hash_but_torch_of_another_address() -> None:
    steps = [step for stage in FILE.stages.values() for step in stage.all("RUN")]
    installs = [
        command
        for step in steps
        for command in re.findall(r"(?:\$VENV_PIP|pip --python \S+) install ([^;&]*)", step)
    ]
    assert len(installs) == 7
    other = [each for each in installs if "--require-hashes" not in each]
    torch = '"torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"'
    assert [each.strip().endswith((torch, "/wheel/*.whl")) for each in other] == [True, True]


def test_a_list_that_has_drifted_is_told(lists: ModuleType) -> None:
    core = [r for r in PROJECT["project"]["dependencies"] if not r.startswith("timm")]
    changed = {**PROJECT, "project": {**PROJECT["project"], "dependencies": core}}
    with pytest.raises(ValueError, match="no timm any more"):
        lists.requirements(changed, "pipeline")
    assert lists.name_of("Torch_Vision.x[all]>=1; python_version > '3'") == "torch-vision-x"


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    """A command in place of a builder, which writes down how it was called."""
    script = tmp_path / "builder"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/called\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def build(builder: Path, *targets: str, **settings: str) -> subprocess.CompletedProcess[str]:
    known = ("PLATFORM", "REGISTRY", "VERSION", "BUILDER", "BUILD_ARGS")
    env = {name: value for name, value in os.environ.items() if name not in known}
    return subprocess.run(
        [DOCKER / "build.sh", *targets],
        env={**env, "BUILDER": str(builder), **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_script_builds_both_under_the_names_that_jobs_use(builder: Path) -> None:
    done = build(builder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [TRAIN_IMAGE, f"percmae-pipeline:{__version__}"]
    called = (builder.parent / "called").read_text()
    targets = re.findall(r"^--target\n(.*)$", called, re.M)
    assert targets == ["train", "train-sbom", "pipeline", "pipeline-sbom"]
    assert called.count("--output\ntype=local,dest=build/sbom\n") == 2
    assert f"VERSION={__version__}\n" in called
    assert re.search(r"REVISION=([0-9a-f]{40}(-modified)?|unknown)\n", called)
    assert "TORCH_INDEX_URL" not in called


def test_the_script_passes_settings_on(builder: Path) -> None:
    done = build(
        builder,
        "train",
        PLATFORM="cuda",
        REGISTRY="registry.example/team/",
        VERSION="7",
        BUILD_ARGS="--build-arg BASE_IMAGE=x",
    )
    assert done.stdout == "registry.example/team/percmae-train:7\n"
    called = (builder.parent / "called").read_text().splitlines()
    assert {"TORCH_INDEX_URL=", "TRAIN_APT=gcc libc6-dev", "BASE_IMAGE=x"} <= set(called)
    # Both are arguments that the Dockerfile knows.
    assert {"TORCH_INDEX_URL"} <= FILE.stages["torch"].args()
    assert {"TRAIN_APT"} <= FILE.stages["train"].args()


@pytest.mark.parametrize(
    ("targets", "settings", "line"),
    [
        (["test"], {}, "docker/build.sh: no image test: give train or pipeline\n"),
        ([], {"PLATFORM": "tpu"}, "docker/build.sh: PLATFORM=tpu: give cpu or cuda\n"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(
    builder: Path, targets: list[str], settings: dict[str, str], line: str
) -> None:
    done = build(builder, *targets, **settings)
    assert (done.returncode, done.stderr) == (2, line)
    assert not (builder.parent / "called").exists()


def test_a_build_that_fails_ends_the_script(tmp_path: Path) -> None:
    done = build(tmp_path / "absent")
    assert done.returncode != 0
    assert done.stdout == ""
