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

from percmae import __version__
from percmae.jobs.schema import TRAIN_IMAGE, USER

ROOT = DOCKER.parent
FILE = read_dockerfile()
IMAGES = ("train", "pipeline")
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
        assert stage.base in known or stage.base == "${BASE_IMAGE}", stage.base
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
    install = next(i for i, (_, rest) in enumerate(steps) if "install -r" in rest)
    assert install < steps.index(("COPY", "percmae percmae"))
    for stage in FILE.stages.values():
        if stage.name.endswith("-packages") or stage.name == "torch":
            # Lists only: otherwise every change of the source would install everything again.
            assert all(rest.startswith("--from=lists ") for rest in stage.all("COPY")), stage.name


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sent = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = set()
    for stage in FILE.stages.values():
        for rest in stage.all("COPY"):
            if not rest.startswith("--from="):
                copied |= set(rest.split()[:-1])
    assert copied == set(sent)
    assert all((ROOT / path).exists() for path in copied)
    # The packages that pyproject.toml says are installed.
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= copied


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
    assert set(lists.requirements(PROJECT, "train")) == core
    pipeline = set(lists.requirements(PROJECT, "pipeline"))
    assert set(extras["pipelines"]) < pipeline
    left_out = core - pipeline
    assert {lists.name_of(requirement) for requirement in left_out} == set(lists.TRAINING_ONLY)
    assert set(lists.requirements(PROJECT, "data")) < set(extras["local"])
    assert lists.requirements(PROJECT, "build") == PROJECT["build-system"]["requires"]


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
    assert called.count("--target\ntrain\n") == called.count("--target\npipeline\n") == 1
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
