"""What stands around a verb when it is a step of the pipeline."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from percmae.errors import DataError, Interrupted, StoreError
from percmae.stages import steps


def test_one_seed_one_folder() -> None:
    config = steps.pretrain_config("ssim", "demo", "", "try", ["optim.epochs=3"], 7)
    assert (config.run_name, config.seed, config.optim.epochs) == ("try_ssim", 7, 3)
    assert steps.pretrain_config("mae", "mae", "tiny", "", [], 0).model.encoder.width == 192
    assert steps.runs_folder("s3://bucket", 7) == "s3://bucket/runs/seed-7"
    assert steps.dataset_folder("s3://bucket/x", "mnist") == "s3://bucket/x/datasets/mnist"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (DataError("no such archive"), 2, "percmae: error: no such archive"),
        (StoreError("no answer"), 1, "percmae: error: no answer"),
        (Interrupted(15, "saved"), 143, "percmae: stopped: saved"),
        (KeyboardInterrupt(), 130, "percmae: stopped: nothing half-written is left"),
    ],
)
def test_a_step_ends_as_the_command_line_does(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @steps._step
    def step() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_a_bug_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    @steps._step
    def step() -> None:
        raise ValueError("odd")

    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "unexpected ValueError in percmae/stages/steps.py, line " in said
    assert ": odd; this is a fault of percmae: report it" in said
    (kept,) = tmp_path.iterdir()
    assert 'raise ValueError("odd")' in kept.read_text()


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
