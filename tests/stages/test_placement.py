"""From a pipeline's parameters, and what its author sets on a task, to a job's settings."""

from __future__ import annotations

from typing import Any

import pytest
from kfp.dsl import TaskConfig

from percmae.errors import ConfigError
from percmae.jobs.names import PULL_SECRETS_VARIABLE, STEP_SIZED_VARIABLE
from percmae.jobs.schema import JobSettings
from percmae.stages.placement import Placement


def settings(stage: str = "pretrain", **parameters: Any) -> JobSettings:
    found = Placement("pytorchjob", **parameters).settings(stage)
    assert found is not None
    return found


def test_local_needs_no_job() -> None:
    assert Placement().settings("pretrain") is None
    assert Placement("local", "image", 5, 8).settings("evaluate") is None


def test_an_unknown_launcher_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'pytorchjob'"):
        Placement("pytorch-job").settings("pretrain")


def test_parameters_become_settings() -> None:
    found = settings(image="i:1", nodes=4, gpus=8, job=["memory=64Gi", "queue=q"])
    assert (found.kind, found.image, found.nodes, found.gpus) == ("pytorchjob", "i:1", 4, 8)
    assert (found.memory, found.queue) == ("64Gi", "q")


def test_a_setting_may_be_for_one_stage() -> None:
    job = ["probe.nodes=1", "memory=8Gi", "pretrain.memory=64Gi"]
    assert settings("probe", nodes=4, job=job).nodes == 1
    assert settings("probe", nodes=4, job=job).memory == "8Gi"
    assert settings("pretrain", nodes=4, job=job).nodes == 4
    assert settings("pretrain", nodes=4, job=job).memory == "64Gi"


def test_evaluating_takes_one_pod() -> None:
    found = settings("evaluate", nodes=4, gpus=8, job=["min_nodes=2", "volcano_queue=q"])
    assert (found.kind, found.nodes, found.gpus) == ("job", 1, 1)
    assert settings("evaluate", gpus=0).gpus == 0
    # What is about several pods is for the stages that have several.
    job = ["min_nodes=2", "volcano_queue=q"]
    assert settings("evaluate", nodes=4, job=job).min_nodes is None
    assert settings("pretrain", nodes=4, job=job).min_nodes == 2


def test_what_is_set_on_the_task_reaches_the_job() -> None:
    tolerations = [{"key": "gpu", "operator": "Exists"}]
    task = TaskConfig(
        tolerations=tolerations,
        node_selector={"zone": "a"},
        affinity={"nodeAffinity": {}},
        env=[{"name": "NCCL_DEBUG", "value": "INFO"}],
        volumes=[{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}],
        volume_mounts=[{"name": "cache", "mountPath": "/cache"}],
        resources={
            "limits": {"nvidia.com/gpu": "8", "memory": "200Gi", "cpu": "32"},
            "requests": {"memory": "100Gi", "cpu": "16"},
        },
    )
    found = settings(gpus=1, task=task)
    assert (found.gpus, found.gpu_resource) == (8, "nvidia.com/gpu")
    assert (found.memory, found.cpu, found.cpu_limit) == ("200Gi", "16", "32")
    assert found.tolerations == tolerations
    assert found.node_selector == {"zone": "a"}
    assert found.affinity == {"nodeAffinity": {}}
    assert found.env == [{"name": "NCCL_DEBUG", "value": "INFO"}]
    assert found.volumes[0]["name"] == found.volume_mounts[0]["name"] == "cache"


def test_a_step_that_has_its_tasks_resources_itself_keeps_them_from_its_job() -> None:
    own = [{"name": STEP_SIZED_VARIABLE, "value": "true"}]
    resources = {"limits": {"nvidia.com/gpu": "8", "memory": "1Gi", "cpu": "1"}}
    task = TaskConfig(resources=resources, env=own, node_selector={"zone": "a"})
    assert settings(gpus=1, task=task) == settings(
        gpus=1, task=TaskConfig(node_selector={"zone": "a"})
    )


def test_another_vendors_devices() -> None:
    found = settings(task=TaskConfig(resources={"limits": {"amd.com/gpu": 2}}))
    assert (found.gpus, found.gpu_resource) == (2, "amd.com/gpu")


def test_the_job_has_its_own_keys_and_shared_memory() -> None:
    """What every step of the pipeline gets is not given twice to its job."""
    task = TaskConfig(
        env=[{"name": "AWS_ACCESS_KEY_ID", "value": "x"}, {"name": "A", "value": "b"}],
        volumes=[{"name": "dshm", "emptyDir": {"medium": "Memory"}}],
        volume_mounts=[{"name": "dshm", "mountPath": "/dev/shm"}],
    )
    found = settings(task=task)
    assert [entry["name"] for entry in found.env] == ["A"]
    assert found.volumes == found.volume_mounts == []


def test_the_job_uses_the_steps_secret_and_config_map() -> None:
    def secret(key: str) -> dict[str, Any]:
        return {"secretKeyRef": {"name": "mlpipeline-minio-artifact", "key": key}}

    address = {"configMapKeyRef": {"name": "store-of-kfp", "key": "AWS_ENDPOINT_URL"}}
    task = TaskConfig(
        env=[
            {"name": "AWS_ACCESS_KEY_ID", "valueFrom": secret("access")},
            {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": secret("secret")},
            {"name": "AWS_ENDPOINT_URL", "valueFrom": address},
            {"name": "AWS_REGION", "valueFrom": address},
            {"name": "AWS_SESSION_TOKEN", "valueFrom": secret("token")},
        ]
    )
    found = settings(task=task)
    assert found.env == []
    assert found.store_session_token == "token"
    assert found.store_secret == "mlpipeline-minio-artifact"
    assert (found.store_access_key, found.store_secret_key) == ("access", "secret")
    assert found.store_config == "store-of-kfp"
    assert settings(job=["store_secret=mine"], task=task).store_secret == "mine"


def test_a_session_token_from_elsewhere_is_passed_on() -> None:
    token = {"secretKeyRef": {"name": "session", "key": "token"}}
    task = TaskConfig(env=[{"name": "AWS_SESSION_TOKEN", "valueFrom": token}])
    assert [entry["name"] for entry in settings(task=task).env] == ["AWS_SESSION_TOKEN"]


def test_an_empty_task_changes_nothing() -> None:
    assert settings(gpus=3, task=TaskConfig()) == settings(gpus=3)
    assert settings(gpus=3, task=TaskConfig(resources={})).gpus == 3


def test_explicit_settings_win_over_the_task() -> None:
    task = TaskConfig(resources={"limits": {"memory": "1Gi"}})
    assert settings(job=["memory=5Gi"], task=task).memory == "5Gi"


def test_the_secrets_that_pulled_a_steps_image_pull_its_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PULL_SECRETS_VARIABLE, "registry,mirror")
    task = TaskConfig(env=[{"name": PULL_SECRETS_VARIABLE, "value": "registry,mirror"}])
    for stage in ("pretrain", "evaluate"):
        found = settings(stage, task=task)
        assert (found.image_pull_secrets, found.env) == (["registry", "mirror"], [])
    assert settings(job=["image_pull_secrets=[own]"]).image_pull_secrets == ["own"]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_with_a_password_stops_no_training(name: str) -> None:
    """Kubeflow's administrators may have set it in every step."""
    entry = {"name": name, "value": "http://me:pw@proxy:3128"}
    assert settings(task=TaskConfig(env=[entry])).env == [entry]
