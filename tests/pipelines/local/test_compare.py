"""Several variants through the whole pipeline, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_pipeline import TINY, write_images

from percmae.errors import Interrupted, PercmaeError, UserError
from percmae.storage import StorePath
from pipelines.local import compare as module
from pipelines.local.compare import compare, failures
from pipelines.local.options import RunOptions


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), "dark", "light")


@pytest.mark.slow
def test_two_variants_then_one_of_them_fails(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCMAE_HOME", str(tmp_path / "home"))
    store, to = tmp_path / "store", tmp_path / "runs"
    options = RunOptions("t", source=str(images), seeds=[4], overrides=TINY, to=to, fine_tune=False)
    document = compare(["ssim", "mae"], replace(options, store=str(store)))
    assert [row["variant"] for row in document["rows"]] == ["ssim", "mae"]
    failures(document)  # there are none
    for row in document["rows"]:
        folder = StorePath(str(store)) / "runs" / "seed-4" / f"t_{row['variant']}"
        record = (folder / "run.json").read_json()
        assert row["seeds"] == [4]
        assert row["steps"]["mean"] == record["step"] == record["total_steps"]
        assert row["step_seconds"]["mean"] == pytest.approx(record["seconds"] / record["step"])
        assert row["knn"]["mean"] == record["metrics"]["val/knn_top1"]
        evaluation = (folder / "evaluation.json").read_json()["reconstruction"]
        assert row["psnr"]["mean"] == pytest.approx(evaluation["psnr"])
        for kind, name in (("probe", "probe"), ("probe_untrained", "probe_untrained")):
            path = folder.parent / f"t_{row['variant']}_{name}" / "evaluation.json"
            assert row[kind]["mean"] == path.read_json()["top1"]
        assert row["finetune"]["mean"] is None
        assert (to / f"t_{row['variant']}" / "report.html").exists()
    made = sorted(path.name for path in (to / "t_compare").iterdir())
    assert made == ["compare.json", "compare.md", "compare.png", "reconstructions.png"]

    # As after a training with other settings under this tag: ssim is refused, mae is reused.
    record = store / "runs" / "seed-4" / "t_ssim" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"key": "sha256:other"}))
    words = ["--variants", "ssim,mae", "--tag", "t", "--seeds", "4", "--source", str(images)]
    words += ["--no-fine-tune", "--to", str(to), "--store", str(store)]
    again = subprocess.run(
        [sys.executable, "-m", "percmae", "compare", *words, *TINY],
        env={**os.environ, "PERCMAE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 1
    reason = next(x for x in again.stdout.splitlines() if x.startswith("ssim"))
    assert "failed: seed 4 pretrain: run " in reason
    assert "choose another --tag" in reason
    ended = again.stderr.splitlines()[-1]
    assert ended.startswith("percmae: error: 1 of 2 variants failed: ssim;")
    assert "Traceback" not in again.stderr
    assert again.stderr.count("seed 4 pretrain          | unchanged, reused") == 1
    assert again.stdout.splitlines()[-1] == str((to / "t_compare" / "compare.md").resolve())
    second = json.loads((to / "t_compare" / "compare.json").read_text())
    assert second["rows"][0]["error"] in reason
    assert second["rows"][1] == document["rows"][1]
    with pytest.raises(PercmaeError, match="1 of 2 variants failed: ssim"):
        failures(second)


def test_a_signal_ends_all_of_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCMAE_HOME", str(tmp_path / "home"))
    begun = []

    def stopped(variant: str, *rest: Any) -> None:
        begun.append(variant)
        raise Interrupted(signal.SIGINT, "stopped")

    monkeypatch.setattr(module, "run", stopped)
    options = RunOptions(source=str(images), to=tmp_path / "to", store=str(tmp_path / "s"))
    with pytest.raises(Interrupted):
        compare(["mae", "ssim"], options)
    assert begun == ["mae"]
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": []}, "one or more different"),
        ({"variants": ["mae", "mae"]}, "one or more different"),
        ({"variants": ["mae", "sim"]}, "did you mean 'ssim'"),
        ({"overrides": ["optim.epoch=1"]}, "did you mean 'optim.epochs'"),
        ({"overrides": ["model.norm_pix_loss=true"]}, "cannot be used with variant ssim"),
        ({"seeds": (1, 1)}, "one or more different"),
        ({"source": "nothing"}, "unknown sample source"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERCMAE_HOME", raising=False)
    with pytest.raises(UserError, match=message):
        compare(arguments.pop("variants", ["mae", "ssim"]), RunOptions(**arguments))
    assert not list(tmp_path.iterdir())


def test_all_variants_are_compared_by_default() -> None:
    from percmae.config.load import VARIANTS

    assert module._chosen(None) == list(VARIANTS)
    assert {"mae", "ssim"} < set(VARIANTS)
