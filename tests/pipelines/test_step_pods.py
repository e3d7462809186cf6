"""What the steps' pods are told: on the command line, in the compiled pipeline, and read back."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from compiled_pipeline import COMPONENTS, PINNED, SEEDS, containers, tasks

from percmae.errors import ConfigError
from percmae.jobs.names import STEP_SIZED_VARIABLE
from percmae.jobs.syntax import cores, memory
from percmae.plain import documents
from pipelines.__main__ import main
from pipelines.pod import PodSettings, pod_of
from pipelines.server.package import Package
from pipelines.step import STEPS, StepSettings, with_words
from pipelines.which import compile_pipeline


def test_settings_of_the_steps_pods(tmp_path: Path) -> None:
    output = tmp_path / "train.yaml"
    words = ["--store-secret", "keys", "--store-config", "where", "--image-pull-secret", "one"]
    words += ["--image-pull-secret", "two", "--image-pull-policy", "Always"]
    words += ["--node-selector", "pool=cpu", "--toleration", "a=b:NoSchedule", "--toleration", "c"]
    assert main(["compile", "--output", str(output), "--image", PINNED, *words]) == 0
    spec, platform = documents(output.read_text(encoding="utf-8"))
    steps = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert steps.keys() == spec["deploymentSpec"]["executors"].keys()
    for name, step in steps.items():
        if name != "exec-clean":
            assert step["secretAsEnv"][0]["secretName"] == "keys"
            assert {entry["configMapName"] for entry in step["configMapAsEnv"]} == {"where"}
        assert [secret["secretName"] for secret in step["imagePullSecret"]] == ["one", "two"]
        assert step["imagePullPolicy"] == "Always"
        assert step["nodeSelector"]["labels"] == {"pool": "cpu"}
        assert step["tolerations"] == [
            {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"},
            {"key": "c", "operator": "Exists"},
        ]


def test_settings_are_read_back_from_what_was_compiled(tmp_path: Path) -> None:
    output = str(tmp_path / "train.yaml")
    every = StepSettings(
        "0.5", "2", "1Gi", "3Gi", 2, "amd.com/gpu", 900, 4, (("a.b/c", "d"),), (("e", "f g"),)
    )
    given = PodSettings(
        "keys", "id", "key", "where", "1Gi", "Always", ("one", "two"), (("x", "y"),),
        (("a", "b", "NoSchedule"), ("c", "", "")), "mine:1",
        tuple((name, every if name == "ingest" else made) for name, made in STEPS), 2, 60, 3600,
    )  # fmt: skip
    usual = PodSettings()
    for mine, default in ((given, usual), (every, StepSettings())):
        differ = [f.name for f in fields(mine) if getattr(mine, f.name) == getattr(default, f.name)]
        assert not differ, "each field is looked at"
    for pod in (usual, given):
        compile_pipeline("train", output, PINNED, pod)
        package = Package.from_yaml(Path(output).read_text(encoding="utf-8"))
        assert pod_of(package.pipeline, package.platform) == pod
        # As KFP hands it back: through protobuf, defaults left out, large numbers as texts.
        content = package.content
        assert pod_of(content, content["platform"]) == pod
    assert pod_of({}, {}) == PodSettings()


def test_a_quota_has_all_that_it_asks_of_a_step(spec: dict[str, Any]) -> None:
    """Where a namespace has one for a resource, it refuses each container that does not say it."""
    for name, container in containers(spec).items():
        sizes = container["resources"]
        for what, least in (("Cpu", cores), ("Memory", memory)):
            request = least(sizes[f"resource{what}Request"], name)
            limit = least(sizes[f"resource{what}Limit"], name)
            assert 0 < request <= limit, name


def test_the_size_of_a_step_is_not_that_of_its_job(spec: dict[str, Any]) -> None:
    """The pipeline's parameters say that; components in somebody else's pipeline are unchanged."""
    for name in ("pretrain", "finetune", "probe", "evaluate", "reconstruct"):
        env = containers(spec)[f"exec-{name}"]["env"]
        assert {"name": STEP_SIZED_VARIABLE, "value": "true"} in env
        component = COMPONENTS[name].component_spec
        assert not component.implementation.container.env
        passed = {
            each.field.name: each.apply_to_task for each in component.task_config_passthroughs
        }
        assert passed["RESOURCES"] is False


def test_words_about_steps(tmp_path: Path) -> None:
    output = tmp_path / "train.yaml"
    words = ["--step", "pretrain.memory=8Gi", "--step", "memory=512Mi", "--step", "timeout=null"]
    words += ["--step", "retries=5", "--step", "labels={team: vision}", "--step", "pretrain.gpus=1"]
    words += ["--step", 'annotations={karpenter.sh/do-not-disrupt: null, x: "1"}']
    words += ["--parallelism", "1", "--run-ttl", "60", "--run-deadline", "90"]
    assert main(["compile", "--output", str(output), "--image", PINNED, *words]) == 0
    spec, platform = documents(output.read_text(encoding="utf-8"))
    made = dict(pod_of(spec, platform).steps)
    assert (made["pretrain"].memory, made["pretrain"].memory_limit) == ("8Gi", "8Gi")
    assert (made["probe"].memory, made["probe"].memory_limit) == ("512Mi", "1Gi")
    assert (made["pretrain"].gpus, made["probe"].gpus) == (1, 0)
    evict = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false")
    assert made["ingest"].annotations == (evict, ("x", "1"))
    ours = [made[name] for name in COMPONENTS]
    assert {(step.timeout, step.retries, step.labels) for step in ours} == {
        (None, 5, (("team", "vision"),))
    }
    run = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert run == {"resourceTtlOnCompletion": 60, "activeDeadlineSeconds": 90}
    assert tasks(spec)[SEEDS]["iteratorPolicy"] == {"parallelismLimit": 1}
    policies = [task["retryPolicy"] for task in tasks(spec).values() if "retryPolicy" in task]
    assert {policy["backoffMaxDuration"] for policy in policies} == {f"{365 * 24 * 3600}s"}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("memory", "give key=value or step.key=value"),
        ("pretrian.memory=1Gi", "no step 'pretrian'; did you mean 'pretrain'?"),
        ("memroy=1Gi", "no setting 'memroy'; did you mean 'memory'?"),
        ("ingest.memory=16GB", "step setting ingest.memory='16GB': not a quantity; write 16G"),
        ("memory=1.5Gi", "KFP takes whole numbers such as 1536Mi"),
        ("cpu=1k", "KFP takes cores such as 2, 0.5 or 500m"),
        ("timeout=0", "should be a whole number of at least 1, or null"),
        ("gpus=null", "should be a whole number of at least 0"),
        ("labels=team", "should be a mapping such as {team: vision}"),
        ("annotations={a: 1}", "should be texts; put them in quotes"),
        ("labels={a: b c}", "letters, digits"),
        ("gpu_resource=a b", "letters, digits"),
    ],
)
def test_a_step_setting_that_cannot_be(
    word: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "train.yaml"
    assert main(["compile", "--output", str(output), "--image", PINNED, "--step", word]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not output.exists()


def test_a_request_and_a_limit_that_do_not_fit() -> None:
    def memory_of(*words: str) -> tuple[str, str]:
        made = dict(with_words(STEPS, words))["check"]
        return made.memory, made.memory_limit

    assert memory_of("memory_limit=128Mi") == ("128Mi", "128Mi")
    assert memory_of("memory=2Gi", "check.memory_limit=4Gi") == ("2Gi", "4Gi")
    with pytest.raises(ConfigError, match=r"check\.memory=2Gi: more than memory_limit=1Gi"):
        memory_of("memory=2Gi", "memory_limit=1Gi")
