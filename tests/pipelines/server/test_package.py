"""The compiled pipeline: the name of an uploaded version, and what is compiled in for its jobs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from percmae import __version__
from percmae.errors import ConfigError
from percmae.jobs.names import PULL_SECRETS_VARIABLE
from pipelines.pod import PodSettings
from pipelines.server import package
from pipelines.step import STEPS, with_words


def test_version_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    file = folder / "package.py"
    file.write_text("")
    monkeypatch.setattr(package, "__file__", str(file))
    assert package.version_name() == __version__  # no checkout

    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-qm", "another project")
    assert package.version_name() == __version__  # installed below a checkout of something else
    git("add", "pipelines")
    git("commit", "-qm", "this project")
    commit = git("rev-parse", "--short", "HEAD")
    assert package.version_name() == commit
    (tmp_path / "new").write_text("")
    assert package.version_name() == commit  # as git has it: an unknown file is no change
    file.write_text("changed")
    assert package.version_name() == f"{commit}-dirty"


def test_a_package_knows_the_image_of_its_jobs_and_the_secrets_for_it() -> None:
    pod = PodSettings(train_image="registry.example.com/train:1", image_pull_secrets=("a", "b"))
    _, found = package.compiled("registry.example.com/steps:1", pod)
    assert found.inputs["train_image"]["defaultValue"] == "registry.example.com/train:1"
    for step in found.pipeline["deploymentSpec"]["executors"].values():
        assert {"name": PULL_SECRETS_VARIABLE, "value": "a,b"} in step["container"]["env"]


@pytest.mark.parametrize(
    ("image", "lacks"),
    [
        ("percmae-pipeline:0.1.0", "torch"),
        ("registry.example.com:5000/x/percmae-train@sha256:" + "0" * 64, "KFP"),
        ("registry.example.com/own:1", None),
    ],
)
def test_steps_train_themselves_in_an_image_that_can(
    image: str, lacks: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = package.compiled(image, PodSettings())
    given = ["launcher=local", "recipe=demo"]
    if lacks is None:
        assert package.parameters(found, given) == {"launcher": "local", "recipe": "demo"}
        assert "get 1Gi of memory and no GPU" in capsys.readouterr().err
        large = PodSettings(steps=with_words(STEPS, ["pretrain.memory=8Gi"]))
        package.parameters(package.compiled(image, large)[1], given)
        assert capsys.readouterr().err == ""
        return
    with pytest.raises(ConfigError, match=f"steps would train in {image}, which lacks {lacks}; "):
        package.parameters(found, given)
