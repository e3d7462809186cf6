"""Real processes: several of them, torchrun, kill −9, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from percmae.data.shards import Dataset
from percmae.errors import PeerLost
from percmae.runs.record import Run

from .conftest import tiny_overrides
from .forked import GENEROUS, percmae

pytestmark = pytest.mark.slow

PERCMAE = [sys.executable, "-m", "percmae"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def command(dataset: Dataset, to: Path, *overrides: str, variant: str = "mae") -> list[str]:
    options = ["--data", dataset.uri, "--to", str(to), "--recipe", "demo", "--resume", "auto"]
    return ["pretrain", *options, "--variant", variant, *tiny_overrides(variant), *overrides]


def run(*parts: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(parts, env=environment, capture_output=True, text=True, timeout=GENEROUS)


def figures(run_uri: Path) -> list[dict[str, float]]:
    """All that was logged, without what the clock says."""
    lines = (run_uri / "metrics.jsonl").read_text().splitlines()
    clock = ("images_per_second", "loader_wait", "split")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def assert_same_start(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    """The first three steps are those of the same training, up to the order of its sums.

    The order changes the last digit of a value, and with it now and then which side of a ReLU a
    feature lies on: a step in the gradient, 1e-5 of its norm at the first step and ten times more
    after each update, by the processor's instructions. A gradient of half the batch, or batch
    statistics of one process alone, are off by 1e-2 and more at the first step already.
    """
    for step, (first, second) in enumerate(zip(a[:3], b[:3], strict=True)):
        sloped = {k for k in first if k.startswith(("grad_norm/", "image_gradient/"))}
        rough, fine = (1e-4, 1e-5) if step == 0 else (1e-2, 1e-4)
        assert {k: second[k] for k in sloped} == pytest.approx(
            {k: first[k] for k in sloped}, rel=rough, abs=1e-7
        )
        assert {k: v for k, v in second.items() if k not in sloped} == pytest.approx(
            {k: v for k, v in first.items() if k not in sloped}, rel=fine, abs=1e-7
        )


def losses(run_uri: Path) -> list[float]:
    text = (run_uri / "metrics.jsonl").read_text()
    return [r["loss"] for r in map(json.loads, text.splitlines())]


# Every branch of a step: R1 and path length at some steps, augmentation with a strength above 0,
# matched features from the discriminator itself and from its copy.
LIVELY = ("stylegan.ada_kimg=0.05", "stylegan.r1_interval=3", "adversarial.refresh_epochs=2")


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("mae", ()),
        ("ssim", ()),
        ("ls_gan", LIVELY),  # batch normalisation over both processes
        ("msg_gan", ("adversarial.kind=wgan",)),
        ("stylegan2_ada", LIVELY),
    ],
)
def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(
    tiny_dataset: Dataset, tmp_path: Path, variant: str, overrides: tuple[str, ...]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    whole = command(tiny_dataset, one, "data.batch_size=16", *overrides, variant=variant)
    (single,) = percmae(whole, one)
    assert single.returncode == 0, single.stderr
    halves = command(tiny_dataset, two, "data.batch_size=8", *overrides, variant=variant)
    double = percmae(halves, two, size=2)
    assert [one.returncode for one in double] == [0, 0], [one.stderr for one in double]
    assert [one.stdout.splitlines() for one in double] == [[str(two / variant)], []]
    a, b = figures(one / variant), figures(two / variant)
    assert [r.keys() for r in a] == [r.keys() for r in b]
    assert_same_start(a, b)
    drift = 2e-5 if variant in ("mae", "ssim") else 5e-2
    assert losses(two / variant) == pytest.approx(losses(one / variant), rel=drift)
    if variant == "stylegan2_ada":
        assert max(record.get("ada_p", 0) for record in a) > 0.2
        assert sum("loss/r1" in record for record in a) > 3


def test_two_processes_report_a_bad_input_once_and_stop(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    percmae(command(tiny_dataset, tmp_path, "optim.max_steps=1"), tmp_path / "first")
    clash = run(*TORCHRUN, "-m", "percmae", *command(tiny_dataset, tmp_path, "seed=4"))
    assert clash.returncode != 0
    assert clash.stderr.count("choose another --tag") >= 1


def test_what_a_lost_process_leaves_behind_is_not_taken_apart() -> None:
    """Not even by freeing it: here that would never end, as with a process group of gloo's."""
    program = """
import time
from percmae.command import exit_code
from percmae.errors import PeerLost
class Group:
    def __del__(self):
        time.sleep(3600)
def work():
    group = Group()
    print("a result")
    raise PeerLost("lost the others", in_midst=True)
raise SystemExit(exit_code(work))
"""
    done = run(sys.executable, "-c", program)
    assert (done.returncode, done.stdout) == (PeerLost.exit_code, "a result\n")
    assert done.stderr == "percmae: stopped: lost the others\n"


def started(*parts: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        parts, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(to: Path, *processes: subprocess.Popen[str]) -> None:
    until = time.monotonic() + GENEROUS
    while not (to / "mae" / "checkpoints" / "latest.json").exists():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.02)


LONG = ("optim.epochs=6", "checkpoint.every_steps=5", "trainer.val_interval=6")


@pytest.mark.faults
def test_kill_9_then_the_same_command_goes_on(tiny_dataset: Dataset, tmp_path: Path) -> None:
    whole = command(tiny_dataset, tmp_path / "whole", *LONG)
    (straight,) = percmae(whole, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    cut = command(tiny_dataset, tmp_path / "cut", *LONG, "data.workers=1")
    process = started(*PERCMAE, *cut)
    wait_for_checkpoint(tmp_path / "cut", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Run.open(str(tmp_path / "cut" / "mae")).complete
    (again,) = percmae(cut, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stderr
    assert again.stdout.splitlines()[-1] == str(tmp_path / "cut" / "mae")
    ended = Run.open(str(tmp_path / "cut" / "mae")).record
    assert ended.step == ended.total_steps
    assert losses(tmp_path / "cut" / "mae") == losses(tmp_path / "whole" / "mae")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_is_told_by_the_exit_code(
    tiny_dataset: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    process = started(*PERCMAE, *command(tiny_dataset, tmp_path, *LONG, "optim.epochs=2000"))
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=GENEROUS)
    assert process.returncode == 128 + number, errors
    assert "percmae: stopped: stopped at step" in errors
    assert "Traceback" not in errors
    record = Run.open(str(tmp_path / "mae")).record
    latest = json.loads((tmp_path / "mae" / "checkpoints" / "latest.json").read_text())
    assert record.status == "running"
    assert record.step == latest["step"] > 0
