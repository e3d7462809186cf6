"""What stands around a verb when it is a step of the pipeline."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from percmae.errors import DataError, Interrupted, StoreAway, StoreError
from percmae.stages import steps
from percmae.stages.check import pretrain_config
from percmae.stages.confusion import MOST_CLASSES_SHOWN, shown_confusion


def test_one_seed_one_folder() -> None:
    config = pretrain_config("ssim", "demo", "", "try", ["optim.epochs=3"], 7)
    assert (config.run_name, config.seed, config.optim.epochs) == ("try_ssim", 7, 3)
    assert pretrain_config("mae", "mae", "tiny", "", [], 0).model.encoder.width == 192
    assert steps.runs_folder("s3://bucket", 7) == "s3://bucket/runs/seed-7"
    assert steps.dataset_folder("s3://bucket/x", "mnist") == "s3://bucket/x/datasets/mnist"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (DataError("no such archive"), 2, "percmae: error: no such archive"),
        (StoreError("no room"), 1, "percmae: error: no room"),
        (StoreAway("no answer"), 140, "percmae: error: no answer"),
        (Interrupted(15, "saved"), 143, "percmae: stopped: saved"),
        (KeyboardInterrupt(), 130, "percmae: stopped: nothing half-written is left"),
    ],
)
def test_a_step_ends_as_the_command_line_does(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @steps.as_step
    def step() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_leaves_its_traceback_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    @steps.as_step
    def step() -> None:
        raise ValueError("odd")

    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("percmae: error: unexpected ValueError in ")


def test_a_step_without_torch_asks_for_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the image of pipeline steps."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    run = SimpleNamespace(metadata={"uri": "s3://none/run"})
    with pytest.raises(SystemExit) as ended:
        steps.evaluate(run, run, None, None, steps.Placement())
    assert ended.value.code == 2
    assert "give the pipeline a launcher" in capsys.readouterr().err


def test_cleaning_up_takes_a_run_and_a_namespace_and_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings of the run's jobs need not fit anything, and each of their namespaces counts."""
    looked: list[tuple[str, str | None]] = []

    def clean(pipeline_run: str, namespace: str | None) -> list[str]:
        looked.append((pipeline_run, namespace))
        return []

    monkeypatch.setattr("percmae.jobs.launcher.clean", clean)
    steps.clean("run", "pytorchjob", ["gpu_type=NVIDIA-H100", "min_nodes=2", "no such thing"])
    assert looked == [("run", None)]
    looked.clear()
    steps.clean("run", "job", ["namespace=a", "probe.namespace='b'", "all.namespace = a"])
    assert looked == [("run", None), ("run", "a"), ("run", "b")]
    looked.clear()
    steps.clean("run", "local", ["namespace=a"])
    assert looked == []


def checked(*job: str, **values: Any) -> None:
    given = {
        "variant": "mae",
        "recipe": "mae",
        "size": "",
        "tag": "",
        "overrides": [],
        "seeds": [0],
    }
    placement = steps.Placement("pytorchjob", nodes=2, gpus=1, job=job)
    steps.check(**{**given, **values}, store="s3://bucket", placement=placement)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"seeds": []}, r"seeds \[\]: give one or more different whole numbers"),
        ({"seeds": [0, "x"]}, r"parameter seeds=\[0, 'x'\]: should be whole numbers"),
        ({"variant": "ssmi"}, "did you mean 'ssim'"),
        ({"recipe": "demmo"}, "did you mean 'demo'"),
        ({"size": "hugge"}, "did you mean 'huge'"),
        ({"overrides": ["probe.optim.epoch=3"]}, "did you mean 'optim.epochs'"),
        ({"overrides": [1]}, r"parameter overrides=\[1\]: should be texts"),
        ({"job": ["memroy=1Gi"]}, "did you mean 'memory'"),
    ],
)
def test_the_first_step_refuses_what_a_later_one_would(
    capsys: pytest.CaptureFixture[str], values: dict[str, Any], line: str
) -> None:
    """As the form in KFP gives it, which checks types of parameters and nothing else."""
    job = values.pop("job", [])
    with pytest.raises(SystemExit) as ended:
        checked(*job, **values)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert re.search(line, err)
    assert len(err.splitlines()) == 1


def test_the_first_step_of_a_run_that_can_work(capsys: pytest.CaptureFixture[str]) -> None:
    checked("pretrain.memory=64Gi", seeds=[0.0, 1], tag="t")
    assert "t_mae: the parameters fit" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [3, 100, 101, 1000])
def test_a_confusion_matrix_that_a_person_can_look_at(classes: int) -> None:
    """Of many classes those with most mistakes; no count is lost."""
    counts = np.diag(np.full(classes, 40))
    counts[1, 0], counts[classes - 1, 0], counts[2, 1] = 9, 8, 7
    evaluation = SimpleNamespace(
        classes=[SimpleNamespace(name=f"class {i}") for i in range(classes)],
        confusion=counts.tolist(),
    )
    names, shown = shown_confusion(cast(Any, evaluation))
    assert len(names) == len(shown) == len(shown[0]) == min(classes, MOST_CLASSES_SHOWN)
    assert np.sum(shown) == counts.sum()
    if classes <= MOST_CLASSES_SHOWN:
        assert (names[-1], shown) == (f"class {classes - 1}", counts.tolist())
        return
    assert names[-1] == "all other classes"
    one, two, last = (names.index(f"class {i}") for i in (1, 2, classes - 1))
    assert (shown[two][one], shown[one][one], shown[last][last]) == (7, 40, 40)
    zero = names.index("class 0") if "class 0" in names else -1
    assert (shown[one][zero], shown[last][zero]) == (9, 8)
