"""Running on this machine: kfp.local for real, with steps that do next to nothing."""

from __future__ import annotations

import builtins
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import toy

from pipelines.local import tasks
from pipelines.local.tasks import StepError
from pipelines.local.warm import ComponentCall, ForkServer


def marks(folder: Path, text: str) -> dict[int, tuple[int, float]]:
    """Seed to (process, time) of the marks that the steps have left."""
    found = {}
    for file in folder.glob(f"{text}-*"):
        pid, when = file.read_text().split()
        found[int(file.name.rpartition("-")[2])] = (int(pid), float(when))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for init to notice does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
def test_a_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    handlers = logging.getLogger().handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps, screen, log = toy.run(str(tmp_path))
    assert {(step.name, step.seed) for step in steps} == {("ingest", None)} | {
        (name, seed)
        for name in ("pretrain", "probe_untrained", "evaluate probe_untrained")
        for seed in range(3)
    }
    assert [step.name for step in steps if step.reused] == ["ingest"]
    pretrained = {step.seed: step for step in steps if step.name == "pretrain"}
    assert pretrained[2].artifacts == {"model": {"seed": 2}}
    assert pretrained[2].seconds > 1
    # The store's address reaches the steps; their stderr is shown, with where it comes from.
    assert f"{'ingest':24} | endpoint http://store.example\n" in screen
    assert f"{'ingest':24} | unchanged, reused\n" in screen
    assert f"{'seed 1 pretrain':24} | done in" in screen
    # What is noise to a newcomer is in the log.
    assert "for the log only" in log
    assert "for the log only" not in screen
    assert "executor_input" in log
    assert len(screen.splitlines()) == 2 + 3 * 3
    assert tuple(capsys.readouterr()) == ("", "")
    # Nothing of what kfp has changed in this process is left, and no file.
    assert builtins.print.__name__ == "print"
    assert logging.getLogger().handlers == handlers
    assert not list(temporary.iterdir())
    # Two seeds at a time, the third when one of them has ended.
    began, ended = marks(tmp_path, "began"), marks(tmp_path, "ended")
    order = sorted(began, key=lambda seed: began[seed][1])
    first, second, third = ((began[s][1], ended[s][1]) for s in order)
    assert second[0] < first[1]
    assert third[0] > min(first[1], second[1])


@pytest.mark.parametrize(
    ("mode", "message", "code"),
    [
        ("fail", "seed 1 pretrain: seed 1 has no luck", 2),
        ("away", "seed 1 pretrain: seed 1 has no store", 140),
        ("crash", "seed 1 pretrain: ValueError: odd (traceback in the log)", 1),
    ],
)
def test_a_step_that_fails(tmp_path: Path, mode: str, message: str, code: int) -> None:
    with pytest.raises(StepError) as raised:
        toy.run(str(tmp_path), mode, (1, 0, 2))
    assert str(raised.value) == message
    assert raised.value.exit_code == code
    # The step that ran beside it may save its work first; the one that waited is not begun.
    assert 2 not in marks(tmp_path, "began")
    assert marks(tmp_path, "ready").keys() == marks(tmp_path, "saved").keys()


def test_a_signal_right_after_the_start_is_not_lost() -> None:
    call = ComponentCall(
        "import time\ntime.sleep(20)\n", ["--executor_input", "{}", "--function_to_execute", "f"]
    )
    with ForkServer() as server, open(os.devnull, "w") as nowhere:
        for _ in range(20):
            step = server.start(call, {}, nowhere.fileno(), nowhere.fileno())
            step.signal(signal.SIGTERM)
            assert step.wait() == 128 + signal.SIGTERM


def test_what_a_step_leaves_behind_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    steps, _, _ = toy.run(str(tmp_path), "orphan", (0,))
    assert time.monotonic() - began < 60
    assert [step.name for step in steps][1] == "pretrain"


def started(tmp_path: Path) -> subprocess.Popen[str]:
    """A pipeline in a process group of its own, as a shell starts it, with two steps at work."""
    process = subprocess.Popen(
        [sys.executable, toy.__file__, str(tmp_path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Not ignored, as it is below nohup.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600
    while len(marks(tmp_path, "ready")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path)
    # A terminal's Ctrl-C goes to the whole group; the steps must not take it for a second one.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.splitlines()[-1].startswith("percmae: stopped: nothing is left running")
    assert "Traceback" not in err
    saved = set(marks(tmp_path, "saved"))
    assert len(marks(tmp_path, "began")) == 2  # the third was not started
    if number != signal.SIGHUP:  # which the toy's steps do not handle
        assert saved == set(marks(tmp_path, "began"))
    assert not [pid for pid, _ in marks(tmp_path, "began").values() if alive(pid)]


@pytest.mark.slow
def test_stopping_at_once(tmp_path: Path) -> None:
    process = started(tmp_path)
    pids = [pid for pid, _ in marks(tmp_path, "began").values()]
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert not marks(tmp_path, "saved")
    assert not [pid for pid in pids if alive(pid)]


def test_another_kfp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kfp.local import subprocess_task_handler

    monkeypatch.delattr(subprocess_task_handler, "run_local_subprocess")
    with pytest.raises(Exception, match=r"^kfp .* install kfp 2\.17$"):
        toy.run(str(tmp_path))


def test_steps_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert tasks._shared_cores()["OMP_NUM_THREADS"] == "4"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert tasks._shared_cores()["OMP_NUM_THREADS"] == "1"
