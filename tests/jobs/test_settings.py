"""Where a job runs: settings from key=value, faults told by their key."""

from __future__ import annotations

import dataclasses

import pytest

from percmae.config.flat import docs
from percmae.errors import ConfigError
from percmae.jobs.advice import advise
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings


def test_values_are_read_as_yaml_and_strings_win_over_keywords() -> None:
    settings = job_settings(
        ["nodes=2", "cpu=8", "memory=64Gi", "deadline=null", "node_selector={pool: train}"],
        nodes=1,
        queue="team-a",
    )
    assert (settings.nodes, settings.cpu, settings.memory) == (2, "8", "64Gi")
    assert settings.deadline is None
    assert settings.node_selector == {"pool": "train"}
    assert settings.queue == "team-a"


def test_a_number_is_a_quantity() -> None:
    assert job_settings(["cpu=0.5", "cpu_limit=2"]).cpu == "0.5"
    assert job_settings(cpu=2, memory=2**34).memory == "17179869184"


def test_a_mapping_may_be_given_key_by_key() -> None:
    assert job_settings(["labels.team=vision"]).labels == {"team": "vision"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("memmory=2Gi", "unknown job setting 'memmory'; did you mean 'memory'"),
        ("nodes=two", "job setting nodes="),
        ("nodes=0", "job setting nodes=0: input should be greater than 0"),
        ("gpus=-1", "job setting gpus=-1"),
        ("kind=mpijob", "job setting kind="),
        ("labels=[]", "job setting labels="),
        ("labels={a: 1}", "job setting labels.a=1"),
        ("deadline=0", "job setting deadline=0"),
        ("tolerations={}", "job setting tolerations="),
        ("clean_pods=none", "job setting clean_pods="),
        ("nodes", "expected key=value"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_settings([override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["kind=job", "nodes=2"], "a plain job has one pod"),
        (["min_nodes=2"], "min_nodes=2 is more than nodes=1"),
        (["kind=trainjob", "nodes=4", "min_nodes=2"], "needs kind=pytorchjob"),
        (["kind=job", "volcano_queue=a"], "needs kind=pytorchjob"),
        (["queue=a", "volcano_queue=b"], "one queue only"),
    ],
)
def test_what_no_kind_of_job_can_do(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job_settings(overrides)


def test_every_setting_is_documented() -> None:
    documented = {key: text for key, _, text in docs(JobSettings)}
    assert list(documented) == [field.name for field in dataclasses.fields(JobSettings)]
    assert all(len(text) > 20 for text in documented.values())


@pytest.mark.parametrize(
    ("stage", "gpus", "wanted"), [("evaluate", 8, 1), ("evaluate", 0, 0), ("ingest", 8, 0)]
)
def test_a_stage_that_does_not_train_is_a_plain_job(stage: str, gpus: int, wanted: int) -> None:
    given = ["nodes=4", "min_nodes=2", "volcano_queue=q", f"gpus={gpus}", "memory=8Gi"]
    found = job_settings(given, stage)
    pods = 4 if stage == "ingest" else 1
    assert (found.kind, found.nodes, found.min_nodes) == ("job", pods, None)
    assert found.volcano_queue is None
    assert (found.gpus, found.memory) == (wanted, "8Gi")
    assert (found.cpu, found.shm) == ("4", "2Gi")
    assert job_settings([*given, "resources={rdma/ib: 1}"], stage).resources == {}
    assert job_settings(given, "pretrain").nodes == 4


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (["gpus=8"], ("64", "384Gi", "64Gi")),
        (["gpus=1"], ("8", "48Gi", "8Gi")),
        (["gpus=0"], ("4", "16Gi", "2Gi")),
        (["gpus=8", "memory=64Gi"], ("64", "64Gi", "32768Mi")),
        (["gpus=8", "cpu=16", "shm=2Gi"], ("16", "384Gi", "2Gi")),
    ],
)
def test_sizes_follow_from_the_gpus(given: list[str], size: tuple[str, str, str]) -> None:
    found = job_settings(given, "pretrain")
    assert (found.cpu, found.memory, found.shm) == size


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gpus=8", "memory=64Gi"], "memory=64Gi is little for 8 GPU(s): at least 16Gi for each"),
        (["gpus=8", "cpu=8"], "cpu=8 is little for 8 GPU(s): at least 2 for each"),
        (["gpus=8", "shm=2Gi"], "shm=2Gi is little for 8 GPU(s): at least 1Gi for each"),
        (["env=[{name: HTTPS_PROXY, value: 'http://me:pw@proxy:3128'}]"], "reads the proxy's pass"),
        (["gpus=8"], ""),
        (["gpus=0", "memory=1Gi"], ""),
    ],
)
def test_what_may_not_be_meant_is_warned_of(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = "image=train@sha256:" + "0" * 64
    advise(job_settings([image, *given], "pretrain"))
    warnings = capsys.readouterr().err
    assert said in warnings
    assert bool(said) == bool(warnings)
    assert "pw" not in warnings.replace("reads the proxy's pass", "")


def test_what_only_a_stages_own_kind_refuses() -> None:
    """An evaluation is a Job, whatever trains: it has a priority of its own."""
    given = ["kind=trainjob", "priority_class=high"]
    with pytest.raises(ConfigError, match="a TrainJob takes it from its runtime"):
        job_settings(given, "pretrain")
    assert job_settings(given, "evaluate").priority_class == "high"
    no_gpu = job_settings(["gpus=8", "gpu_type=A100"], "ingest")
    assert (no_gpu.gpus, no_gpu.gpu_type) == (0, None)
