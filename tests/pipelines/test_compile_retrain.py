"""The retrain pipeline as it is compiled, held against a golden file (see test_compile)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from compiled_pipeline import COMPONENTS, PINNED, RETRAINING, containers, tasks
from test_compile import outline

from components import IMAGE
from percmae.errors import ConfigError
from percmae.plain import documents
from pipelines.__main__ import main
from pipelines.server.package import Package, parameters
from pipelines.step import ABSENT, STEPS

GOLDEN = Path(__file__).parent / "golden" / "retrain.yaml"
IF = "exit-handler-1/condition-2"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("compiled") / "retrain.yaml"
    words = ["--pipeline", "retrain", "--output", str(output), "--image", PINNED]
    assert main(["compile", *words]) == 0
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def spec(compiled: str) -> dict[str, Any]:
    return documents(compiled)[0]


def test_same_as_the_golden_file(compiled: str) -> None:
    golden = GOLDEN.read_text(encoding="utf-8")
    assert outline(compiled.replace(PINNED, IMAGE)) == outline(golden), "see `make golden`"


def test_only_what_is_new_is_trained_on(spec: dict[str, Any]) -> None:
    found = tasks(spec)
    names = {name.rpartition("/")[2] for name in found} - {"exit-handler-1", "condition-2"}
    assert names == set(RETRAINING)
    assert {value["args"][-1] for value in containers(spec).values()} == names
    condition = found[IF]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--look-Output'] == true"
    for before, name in pairwise(["pretrain", "finetune", "evaluate", "judge"]):
        assert before in found[f"{IF}/{name}"]["dependentTasks"]
    # Its pod needs what all the others do, and is ended where it cannot start.
    assert found["exit-handler-1/look"]["dependentTasks"] == ["check"]
    assert found["clean"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_the_webhook_is_a_secret_that_need_not_be_there(compiled: str) -> None:
    _, platform = documents(compiled)
    steps = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    secrets = {name: step.get("secretAsEnv", [])[2:] for name, step in steps.items()}
    (webhook,) = secrets.pop("exec-judge")
    assert not any(secrets.values())
    assert (webhook["secretName"], webhook["optional"]) == ("percmae-webhook", True)
    assert webhook["keyToEnv"] == [{"secretKey": "url", "envVar": "PERCMAE_WEBHOOK"}]


def test_parameters_explain_themselves(spec: dict[str, Any]) -> None:
    given = spec["root"]["inputDefinitions"]["parameters"]
    for name, parameter in given.items():
        assert ("defaultValue" in parameter) is (name not in ("images", "model")), name
        starts = ("Data: ", "Training: ", "Model: ", "Jobs: ")
        assert parameter["description"].startswith(starts), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "percmae-retrain needs images and model: give --param name=value"),
        (["images=s3://b/i", "model=m", "rule=[level=2]"], "setting of the rule level=2"),
        (["images=s3://b/i", "model=m", "start=x"], "start=x: one of champion, afresh"),
    ],
)
def test_parameters_are_checked_before_anything_is_sent(
    compiled: str, given: list[str], message: str
) -> None:
    package = Package.from_yaml(compiled)
    with pytest.raises(ConfigError, match=message):
        parameters(package, given)
    assert parameters(package, ["images=s3://b/i", "model=m"]) == {
        "images": "s3://b/i",
        "model": "m",
    }


def test_a_cronjob_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pipeline", "retrain", "--cronjob", "--cron", "0 3 * * *", "--image", PINNED]
    assert main(["schedule", *words]) == 0
    (made,) = documents(capsys.readouterr().out)
    assert made["metadata"]["name"] == "percmae-retrain"
    assert made["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = made["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][2:5] == ["percmae", "retrain", "--launcher"]


@pytest.mark.parametrize(
    ("pipeline", "words", "said"),
    [
        ("retrain", ["--step", "probe.memory=2Gi"], "the retrain pipeline has no step 'probe'"),
        ("train", ["--step", "look.memory=2Gi"], "the train pipeline has no step 'look'"),
        ("retrain", ["--parallelism", "2"], "trains one seed"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    pipeline: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made.yaml"
    assert main(["compile", "--pipeline", pipeline, "--output", str(output), *words]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_the_steps_that_each_has() -> None:
    every = {name for name, _ in STEPS}
    assert {name: every - set(absent) for name, absent in ABSENT.items()} == {
        "train": set(COMPONENTS),
        "retrain": set(RETRAINING),
    }
