"""A run's record: what is refused in one line, and what its figures are reused for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from percmae.config import load_config
from percmae.errors import DataError, UserError
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import (
    Evaluation,
    Reconstruction,
    ReconstructionEvaluation,
    Samples,
    stored_evaluation,
    write_evaluation,
)
from percmae.runs.files import DatasetIdentity
from percmae.runs.record import Identity, Run

DATASET: Any = SimpleNamespace(digest="sha256:0")  # all that is asked of a dataset here


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = load_config("mae", "demo", tag="t")
    return Run.create(str(tmp_path), Identity("t_mae", config, "data", "sha256:0"), {"torch": "2"})


def change(run: Run, **changes: Any) -> None:
    file = Path(run.uri) / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(run: Run) -> str:
    with pytest.raises(DataError) as caught:
        Run.open(run.uri)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(run.uri, "RUN")


def test_a_new_run_opens_as_it_was_made(run: Run) -> None:
    assert Run.open(run.uri) == run
    assert "epochs" not in json.loads((Path(run.uri) / "run.json").read_text())
    run.save(step=3, epochs=0.5, metrics={"val/loss": float("nan"), "val/top1": 1})
    again = Run.open(run.uri).record
    assert (again.step, again.epochs, again.metrics) == (3, 0.5, {"val/loss": None, "val/top1": 1})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "percmae-run/2"}, "format is 'percmae-run/2', must be 'percmae-run/1'"),
        ({"stage": "train"}, "stage is 'train', must be 'pretrain', 'finetune' or 'probe'"),
        ({"variant": "gan"}, "variant is 'gan', must be 'mae', "),
        ({"seed": "0"}, "seed must be int, not '0'"),
        ({"seed": 0.5}, "seed must be int, not 0.5"),
        ({"baseline": 0}, "baseline must be bool, not 0"),
        ({"data": {"uri": "x"}}, "data.digest is missing"),
        ({"data": "x"}, "data must be dict, not 'x'"),
        ({"metrics": {"loss": "low"}}, "metrics.loss must be float, not 'low'"),
    ],
)
def test_a_damaged_record_is_refused(run: Run, changes: dict[str, Any], expected: str) -> None:
    change(run, **changes)
    message = refused(run)
    assert message.startswith(f"RUN/run.json: {expected}")
    assert message.endswith("; the file is damaged")


def test_a_folder_that_is_no_run(run: Run) -> None:
    (Path(run.uri) / "run.json").unlink()
    assert refused(run).startswith("RUN is not a run: it has no run.json; give the folder")


def test_a_config_of_another_version_is_named(run: Run) -> None:
    change(run, config={**run.record.config, "modle": {}})
    message = refused(run)
    assert message.startswith("RUN/run.json: its config is not one of this percmae (unknown")
    assert f"use the version that trained it ({run.record.versions['percmae']})" in message


def test_only_pretraining_runs_are_built_upon(tmp_path: Path) -> None:
    config = load_config("mae", "demo", "probe", tag="t")
    probe = Run.create(str(tmp_path), Identity("t_mae_probe", config, "data", "sha256:0"), {})
    with pytest.raises(UserError, match="is a probe run; give a pretraining run"):
        downstream_config(probe, "finetune")


def figures(run: Run) -> Evaluation:
    record = run.record
    return ReconstructionEvaluation(
        run=run.uri,
        name=record.name,
        key=record.key,
        stage=record.stage,
        variant=record.variant,
        seed=record.seed,
        baseline=record.baseline,
        data=DatasetIdentity(uri="data", digest="sha256:0"),
        samples=Samples(train=1, val=1, test=1),
        reconstruction=Reconstruction(
            psnr=float("inf"), ssim=0.5, samples=1, mask_seed=0, mask_ratio=0.75
        ),
    )


def test_figures_are_reused_for_the_same_weights_and_data(run: Run) -> None:
    with pytest.raises(UserError, match="stopped at step 0; finish it with --resume auto"):
        stored_evaluation(run, DATASET)
    run.save(status="complete")
    assert stored_evaluation(run, DATASET) is None
    write_evaluation(run.path, figures(run))
    found = stored_evaluation(run, DATASET)
    assert found == figures(run)
    assert isinstance(found, ReconstructionEvaluation)
    assert found.reconstruction.psnr is None
    assert stored_evaluation(run, SimpleNamespace(digest="sha256:1")) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["{", '{"format": "percmae-evaluation/1"}', "other weights"])
def test_figures_that_cannot_be_used_are_replaced(
    run: Run, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """``evaluate the run again``, as a report advises, must help."""
    run.save(status="complete")
    file = Path(run.uri) / "evaluation.json"
    if damage == "other weights":
        write_evaluation(run.path, figures(run).model_copy(update={"key": "sha256:other"}))
    else:
        file.write_text(damage)
    assert stored_evaluation(run, DATASET) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert line.endswith("; evaluate the run again")
