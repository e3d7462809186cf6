"""What is uploaded to a cluster: the compiled pipeline, held against a golden file.

After a change that is meant: ``make golden``, and look at the difference.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from compiled_pipeline import COMPONENTS, PINNED, RETRAINING, SEEDS, containers, tasks
from kfp import components as kfp_components

from components import IMAGE
from components.launching import TEXTS
from percmae.plain import documents
from percmae.stages.scope import STAGES
from pipelines.__main__ import main
from pipelines.train import train_pipeline

GOLDEN = Path(__file__).parent / "golden" / "train.yaml"
PASSED = "taskConfigPassthroughs"


def outline(text: str) -> list[dict[str, Any]]:
    """Both documents without what depends on the version of kfp and on the components' source."""
    spec, platform = documents(text)
    del spec["sdkVersion"]
    for container in containers(spec).values():
        del container["command"]
        container["args"] = container["args"][-1]  # the function that is called
    return [spec, platform]


def test_same_as_the_golden_file(compiled: str) -> None:
    golden = GOLDEN.read_text(encoding="utf-8")
    assert outline(compiled.replace(PINNED, IMAGE)) == outline(golden), "see `make golden`"


def test_compiling_twice_gives_the_same_bytes(compiled: str, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    assert main(["compile", "--output", str(again), "--image", PINNED]) == 0
    assert again.read_text(encoding="utf-8") == compiled


def test_kfp_loads_it(compiled: str) -> None:
    loaded = kfp_components.load_component_from_text(compiled)
    assert loaded.name == "percmae-train"
    assert set(loaded.component_spec.inputs) >= {"archive_train", "store", "variant", "seeds"}


def test_every_step_runs_in_the_given_image(spec: dict[str, Any]) -> None:
    assert {container["image"] for container in containers(spec).values()} == {PINNED}
    assert {value["args"][-1] for value in containers(spec).values()} == set(COMPONENTS)


def test_no_step_installs_anything(spec: dict[str, Any]) -> None:
    for name, container in containers(spec).items():
        words = " ".join([*container["command"], *container["args"]])
        assert "pip" not in re.findall(r"\w+", words), name


def test_no_step_relies_on_kfps_cache(spec: dict[str, Any]) -> None:
    cached = [n for n, task in tasks(spec).items() if task.get("cachingOptions", {}) != {}]
    assert not cached


def test_every_step_gets_the_store_and_shared_memory(
    spec: dict[str, Any], platform: dict[str, Any]
) -> None:
    # Cleaning up needs neither, and has to start where there is no secret.
    platform = {name: step for name, step in platform.items() if name != "exec-clean"}
    assert {*platform, "exec-clean"} == spec["deploymentSpec"]["executors"].keys()
    for name, step in platform.items():
        secret, token = step["secretAsEnv"]
        names = {secret["secretName"], token["secretName"]}
        assert names == {"mlpipeline-minio-artifact"}, name
        assert secret["keyToEnv"] == [
            {"secretKey": "accesskey", "envVar": "AWS_ACCESS_KEY_ID"},
            {"secretKey": "secretkey", "envVar": "AWS_SECRET_ACCESS_KEY"},
        ]
        assert token["keyToEnv"] == [{"secretKey": "sessiontoken", "envVar": "AWS_SESSION_TOKEN"}]
        assert (secret["optional"], token["optional"]) == (False, True)
        found = {
            (entry["keyToEnv"][0]["envVar"], entry["optional"])
            for entry in step["configMapAsEnv"]
            if entry["configMapName"] == "percmae-store"
        }
        assert found == {
            ("AWS_ENDPOINT_URL", True),
            ("AWS_REGION", False),
            ("PERCMAE_STORE_OUTAGE_SECONDS", True),
        }
        (shm,) = step["emptyDirMounts"]
        assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "2Gi")
        more = {"activeDeadlineSeconds", "podMetadata"}
        assert step.keys() - more == {"secretAsEnv", "configMapAsEnv", "emptyDirMounts"}


def test_a_step_that_cannot_start_ends_within_minutes(
    spec: dict[str, Any], platform: dict[str, Any]
) -> None:
    """Kubernetes itself would wait for an absent secret or image for ever. The first step needs
    what all the others do, the last one must not wait for it either."""
    for name in ("exec-check", "exec-clean"):
        assert int(platform[name]["activeDeadlineSeconds"]) == 600
    found = tasks(spec)
    assert found["exit-handler-1/ingest"]["dependentTasks"] == ["check"]
    assert "dependentTasks" not in found["exit-handler-1/check"]


def test_nothing_of_the_cluster_in_a_run_on_this_machine() -> None:
    assert not train_pipeline().platform_spec.platforms


@pytest.mark.parametrize(("image", "warned"), [(PINNED, False), ("percmae-pipeline:1", True)])
def test_an_image_without_a_digest_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str, warned: bool
) -> None:
    assert main(["compile", "--output", str(tmp_path / "train.yaml"), "--image", image]) == 0
    assert ("is not pinned by digest" in capsys.readouterr().err) is warned


def test_order_of_the_steps(spec: dict[str, Any]) -> None:
    found = tasks(spec)
    loop = found["exit-handler-1/for-loop-2"]
    assert loop["dependentTasks"] == ["ingest"]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--seeds"}
    for name in ("probe", "probe-2", "probe-3", "condition-3"):
        # Fine-tuning and probes wait for pretraining, not for each other.
        assert found[f"{SEEDS}/{name}"]["dependentTasks"] == ["pretrain"]
    assert found["exit-handler-1/report"]["dependentTasks"] == ["for-loop-2"]


def test_jobs_are_cleaned_up_however_the_run_ends(spec: dict[str, Any]) -> None:
    last = tasks(spec)["clean"]
    assert last["dependentTasks"] == ["exit-handler-1"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    runs = {
        task["inputs"]["parameters"]["pipeline_run"]["runtimeValue"]["constant"]
        for task in tasks(spec).values()
        if "pipeline_run" in task.get("inputs", {}).get("parameters", {})
    }
    assert runs == {"{{$.pipeline_job_uuid}}"}, "what is removed bears the id of this very run"


def test_what_is_set_on_a_task_goes_to_its_job(spec: dict[str, Any]) -> None:
    for name, component in spec["components"].items():
        passed = {p["field"]: p.get("applyToTask", False) for p in component.get(PASSED, [])}
        stage = name.removeprefix("comp-").split("-")[0]
        if stage in (*STAGES, "reconstruct"):
            assert passed == {
                "RESOURCES": True,
                "KUBERNETES_TOLERATIONS": False,
                "KUBERNETES_NODE_SELECTOR": False,
                "KUBERNETES_AFFINITY": False,
                "ENV": True,
                "KUBERNETES_VOLUMES": True,
            }
        else:
            assert not passed, name


def test_only_fine_tuning_depends_on_the_switch(spec: dict[str, Any]) -> None:
    condition = tasks(spec)[f"{SEEDS}/condition-3"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--fine_tune'] == true"
    inside = {n.rpartition("/")[2] for n in tasks(spec) if "/condition-3/" in n}
    assert {name.split("-")[0] for name in inside} == {"for", "finetune", "evaluate"}


def test_controls_differ_from_the_probe_in_one_parameter(spec: dict[str, Any]) -> None:
    names = ("probe", "probe-2", "probe-3")
    inputs = [copy.deepcopy(tasks(spec)[f"{SEEDS}/{name}"]["inputs"]) for name in names]
    features = [given["parameters"].pop("features") for given in inputs]
    constants = [given["runtimeValue"]["constant"] for given in features]
    assert constants == ["pretrained", "untrained", "pixels"]
    assert inputs[0] == inputs[1] == inputs[2]


def test_fine_tuning_is_repeated_for_each_share_of_the_labels(spec: dict[str, Any]) -> None:
    """kfp.local 2.17 takes the inner loop's item for the outer one's, so that must not come in."""
    (name,) = (name for name in tasks(spec) if name.endswith("/condition-3/for-loop-4"))
    loop = tasks(spec)[name]
    shares = loop["parameterIterator"]["items"]["inputParameter"]
    assert shares == "pipelinechannel--label_fractions"
    items = [key for key in loop["inputs"]["parameters"] if key.endswith("-loop-item")]
    assert items == []
    inside = {n.rpartition("/")[2]: t for n, t in tasks(spec).items() if n.startswith(f"{name}/")}
    untrained = [
        inside[step]["inputs"]["parameters"]["untrained"]["runtimeValue"]["constant"]
        for step in ("finetune", "finetune-2")
    ]
    assert untrained == [False, True]


def test_parameters_explain_themselves(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name, parameter in parameters.items():
        assert "defaultValue" in parameter, name
        assert len(parameter["description"]) > 20, name
        assert "\n" not in parameter["description"], name
        # KFP shows them in alphabetical order: the group is said in words.
        assert parameter["description"].startswith(("Data: ", "Training: ", "Jobs: ")), name
    types = {name: parameter["parameterType"] for name, parameter in parameters.items()}
    assert types["seeds"] == types["overrides"] == "LIST"
    assert types["fine_tune"] == "BOOLEAN"
    assert types["variant"] == "STRING"


def test_components_that_launch_a_job_take_the_same_parameters(spec: dict[str, Any]) -> None:
    """Each spells them out, because KFP runs its source alone; what they mean stands once."""
    common = set(TEXTS) - {"pretrained", "overrides"}
    taken = []
    for stage in (*STAGES, "reconstruct"):
        parameters = inspect.signature(COMPONENTS[stage].python_func).parameters
        taken.append([(n, p.annotation) for n, p in parameters.items() if n in common])
        inputs = spec["components"][f"comp-{stage}"]["inputDefinitions"]
        described = inputs["parameters"] | inputs["artifacts"]
        assert described["job"]["description"] == TEXTS["job"]
        assert all(entry.get("description") for entry in described.values()), stage
    assert {name for name, _ in taken[0]} == common
    assert all(other == taken[0] for other in taken[1:])


@pytest.mark.parametrize("name", COMPONENTS | RETRAINING)
def test_components_are_thin(name: str) -> None:
    """One import inside, from percmae, and one call: KFP copies the function's source alone."""
    function = (COMPONENTS | RETRAINING)[name].python_func
    source = Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    definition = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(definition, ast.FunctionDef)
    docstring, imported, call = definition.body
    assert isinstance(docstring, ast.Expr)
    module = "steps" if name in COMPONENTS else "retrain"
    assert ast.unparse(imported) == f"from percmae.stages import {module}"
    assert ast.unparse(call).removeprefix("return tuple(").startswith(f"{module}.{name}(")


def test_default_image_bears_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--help"]) == 0
    assert IMAGE in capsys.readouterr().out
