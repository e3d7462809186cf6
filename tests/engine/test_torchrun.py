"""torchrun as an operator starts it, in two pods' worth of real processes: what becomes of a job
when a pod is told to stop, dies, or has bad input, told by exit codes alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from percmae.data.shards import Dataset
from percmae.engine import torchrun as module
from percmae.errors import PeerLost
from percmae.runs.record import Run
from percmae.runs.restarts import TooManyRestarts
from percmae.storage.outage import OUTAGE_VARIABLE
from percmae.storage.settings import RETRY_VARIABLE

from .forked import GENEROUS, free_port, percmae
from .test_processes import (
    assert_same_start,
    command,
    figures,
    losses,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.slow

PEER_LOST = PeerLost.exit_code
# 104 steps, most of them after the first checkpoint, so that a signal finds the run at work.
LONG = (
    *("optim.epochs=8", "checkpoint.every_steps=10", "trainer.val_interval=8"),
    *("tracking.images=0", "tracking.knn_samples=0"),
)
HALF = "data.batch_size=8"

Start = Callable[..., list[subprocess.Popen[str]]]


def pod_environment(rank: int, port: int, elastic: bool) -> dict[str, str]:
    """What training-operator 1.9 gives a pod: PET_* are torchrun's options, the rest is a trap."""
    nodes = 2
    if elastic:
        named = {
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
            # Not the operator's: who is the host (here all pods have its address), and half of its
            # half a minute of waiting for more pods. (One that comes later has the first begin
            # anew, and may not meet it within torch's minute: both are then to be restarted.)
            "PET_RDZV_CONF": f"is_host={int(rank == 0)},last_call_timeout=15",
            "PET_NNODES": f"1:{nodes}",
            "PET_MAX_RESTARTS": "3",
            "PET_NPROC_PER_NODE": "1",
        }
        return {**os.environ, **named, "OMP_NUM_THREADS": "1"}
    named = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(nodes),
        "RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(rank),
        "PET_NPROC_PER_NODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **named, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(arguments)``: both pods of a job; ``ranks`` for some of them. Killed in the end."""
    everything: list[subprocess.Popen[str]] = []

    def start(
        arguments: list[str],
        ranks: tuple[int, ...] = (0, 1),
        elastic: bool = False,
        **environment: str,
    ) -> list[subprocess.Popen[str]]:
        port = free_port()
        begun = [
            subprocess.Popen(
                [sys.executable, "-m", "percmae.engine.torchrun", "--", *arguments],
                env={**pod_environment(rank, port, elastic), **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in ranks
        ]
        everything.extend(begun)
        return begun

    yield start
    for pod in everything:
        for process in (*workers(pod), pod.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        pod.communicate()


def workers(pod: subprocess.Popen[str]) -> list[int]:
    """The processes that a pod's torchrun has started and that still run."""
    try:
        return [
            int(p) for p in Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
        ]
    except OSError:
        return []


def ended(pods: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and what was said on stderr."""
    said = [pod.communicate(timeout=GENEROUS)[1] for pod in pods]
    return [pod.returncode for pod in pods], said


@pytest.fixture(scope="module")
def whole(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one process makes with the doubled batch, uninterrupted."""
    to = tmp_path_factory.mktemp("whole")
    (done,) = percmae(command(tiny_dataset, to, "data.batch_size=16", *LONG), to)
    assert done.returncode == 0, done.stderr
    return to / "mae"


def test_two_pods_do_what_one_process_does_with_the_doubled_batch(
    tiny_dataset: Dataset, tmp_path: Path, start: Start
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (single,) = percmae(command(tiny_dataset, one, "data.batch_size=16", "optim.max_steps=2"), one)
    assert single.returncode == 0, single.stderr
    pods = start(command(tiny_dataset, two, HALF, "optim.max_steps=2"))
    out = [pod.communicate(timeout=GENEROUS) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], out
    assert [said.splitlines() for said, _ in out] == [[str(two / "mae")], []]
    assert_same_start(figures(one / "mae"), figures(two / "mae"))


@pytest.mark.faults
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_pod_told_to_stop_saves_and_the_job_goes_on_from_there(
    tiny_dataset: Dataset, tmp_path: Path, start: Start, whole: Path, stopped: int
) -> None:
    arguments = command(tiny_dataset, tmp_path, HALF, *LONG)
    pods = start(arguments)
    wait_for_checkpoint(tmp_path, *pods)
    pods[stopped].send_signal(signal.SIGTERM)
    codes, said = ended(pods)
    assert codes[stopped] == 128 + signal.SIGTERM, said
    assert codes[1 - stopped] == PEER_LOST, said
    assert all("percmae: stopped: stopped at step" in text for text in said)
    record = Run.open(str(tmp_path / "mae")).record
    assert record.status == "running"
    assert 10 <= record.step < 104
    if stopped == 0:
        codes, said = ended(start(arguments))
    else:  # the same processes, without torchrun's and Python's start
        done = percmae(arguments, tmp_path / "again", size=2)
        codes, said = [one.returncode for one in done], [one.stderr for one in done]
    assert codes == [0, 0], said
    assert f"going on from step {record.step} of" in said[0]
    assert losses(tmp_path / "mae") == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.faults
def test_an_elastic_job_goes_on_with_the_pods_that_are_left(
    tiny_dataset: Dataset, tmp_path: Path, start: Start
) -> None:
    arguments = command(tiny_dataset, tmp_path, HALF, "optim.total_batch=16", *LONG)
    pods = start(arguments, elastic=True)
    wait_for_checkpoint(tmp_path, *pods)
    pods[1].send_signal(signal.SIGTERM)
    codes, said = ended(pods)
    assert codes == [0, 128 + signal.SIGTERM], said
    assert said[0].count("percmae: stopped: stopped at step") == 1
    assert said[0].count("going on from step") == 1
    record = Run.open(str(tmp_path / "mae")).record
    assert (record.status, record.step) == ("complete", 104)


@pytest.mark.faults
@pytest.mark.parametrize("lost", ["a worker", "a pod", "the first pod"])
def test_when_a_process_is_killed_both_pods_end_in_a_way_that_restarts_them(
    tiny_dataset: Dataset, tmp_path: Path, start: Start, lost: str
) -> None:
    pods = start(command(tiny_dataset, tmp_path, HALF, *LONG, "optim.epochs=4000"))
    wait_for_checkpoint(tmp_path, *pods)
    hit = 0 if lost == "the first pod" else 1
    (worker,) = workers(pods[hit])
    if lost != "a worker":
        os.kill(pods[hit].pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    codes, said = ended(pods)
    assert codes[hit] == (128 + signal.SIGKILL if lost == "a worker" else -signal.SIGKILL), said
    assert codes[1 - hit] == PEER_LOST, said
    assert "lost the others" in said[1 - hit]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=fast", "config key optim.lr"),  # seen by each process
        ("data.batch_size=4000", "lower data.batch_size"),  # seen when all have met
    ],
)
def test_bad_input_is_final_in_every_pod(
    tiny_dataset: Dataset, tmp_path: Path, start: Start, override: str, said: str
) -> None:
    codes, errors = ended(start(command(tiny_dataset, tmp_path, override)))
    assert codes == [2, 2], errors
    assert all(said in text for text in errors)


@pytest.mark.parametrize(
    ("override", "data", "said"),
    [
        ((), "nothing/manifest.json", "manifest.json"),  # which one process reads for all
        (("trainer.num_nodes=3",), None, "the job has 1 node(s)"),
    ],
)
def test_bad_input_is_final_in_every_process(
    tmp_path: Path, tiny_dataset: Dataset, override: tuple[str, ...], data: str | None, said: str
) -> None:
    arguments = command(tiny_dataset, tmp_path, *override)
    if data:
        arguments[arguments.index("--data") + 1] = str(tmp_path / data)
    done = percmae(arguments, tmp_path / "said", size=2)
    assert [one.returncode for one in done] == [2, 2], done
    assert said in done[0].stderr


def test_a_pod_whose_master_never_comes_begins_again(
    tiny_dataset: Dataset, tmp_path: Path, start: Start
) -> None:
    pods = start(command(tiny_dataset, tmp_path), ranks=(1,), PET_RDZV_CONF="timeout=2")
    codes, (said,) = ended(pods)
    assert codes == [PEER_LOST], said
    assert "percmae: stopped: the other pods were not found" in said


def test_a_master_whose_workers_never_come_begins_again(
    tiny_dataset: Dataset, tmp_path: Path, start: Start
) -> None:
    pods = start(command(tiny_dataset, tmp_path), ranks=(0,), PET_RDZV_CONF="timeout=2")
    codes, (said,) = ended(pods)
    assert codes == [PEER_LOST], said


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ({0: (2, 5)}, 2),
        ({0: (-9, 5)}, 137),
        ({0: (1, 6), 1: (137, 5)}, 137),  # the first to fail
        ({0: (PEER_LOST, 5), 1: (-11, 5)}, 139),  # not the one that missed the other
        ({0: (PEER_LOST, 4), 1: (1, 5)}, 1),
        ({0: (PEER_LOST, 5), 1: (PEER_LOST, 5)}, PEER_LOST),
        ({0: (-15, 5), 1: (2, 5)}, 2),  # nor the one that was told to stop because of it
        ({0: (143, 5), 1: (2, 5)}, 2),
        ({0: (143, 5), 1: (PEER_LOST, 6)}, 143),
    ],
)
def test_the_code_of_several_failures_is_that_of_their_cause(
    failures: dict[int, tuple[int, int]], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for rank, (exitcode, second) in failures.items():
        found[rank] = ProcessFailure(rank, 1000 + rank, exitcode, "no file")
        found[rank].timestamp = second
    assert module._cause(ChildFailedError("percmae", found)) == code
    # What a signal has ended could not say so.
    assert ("was ended by SIGKILL" in capsys.readouterr().err) == (failures == {0: (-9, 5)})


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        found = module.torchrun(["--master-addr=127.0.0.1", "--master-port", port, "--", "doctor"])
    assert found == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("percmae: error: another program has the port")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "no verb behind --; usage: python -m percmae.engine.torchrun"),
        (["pretrain"], {}, "no verb behind --"),
        (["--"], {}, "no verb behind --"),
        (["--nnodes", "two", "--", "doctor"], {}, "nnodes=two: expected a number, or MIN:MAX"),
        (["--nnodes", "1:2:3", "--", "doctor"], {}, "nnodes=1:2:3"),
        (["--nnodes", "2:1", "--", "doctor"], {}, "min_nodes"),
        (["--nproc", "2", "--such", "--", "doctor"], {}, "torchrun's options (or PET_* variables)"),
        (["--", "doctor"], {"PET_NPROC_PER_NODE": "all"}, "nproc_per_node value: all"),
        (["--", "doctor"], {"PET_NNODES": "2", "PET_MASTER_PORT": "http"}, "--master-port"),
        (["--", "doctor"], {"PET_RDZV_CONF": "timeout"}, "timeout"),
    ],
)
def test_misuse_is_told_in_one_line(
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert module.torchrun(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("percmae: error: ")
    assert said in line


def test_options_of_percmae_are_not_torchruns() -> None:
    """torchrun has --run-path, of which argparse would take --run for a short form."""
    given = ["finetune", "--run", "s3://r", "--untrained", "--nnodes", "optim.epochs=3"]
    found = module._parse(["--nnodes", "2", "--", *given])
    assert (found.training_script, found.module, found.nnodes) == ("percmae", True, "2")
    assert found.training_script_args == given


@pytest.mark.faults
def test_a_pod_that_is_killed_again_and_again_ends_for_good(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """As for its memory: all that runs in it is killed at once, and can say nothing."""
    run = tmp_path / "mae"
    counting = ["--standalone", "--run-folder", str(run), "--backoff-limit", "1"]
    pod = [sys.executable, "-m", "percmae.engine.torchrun", *counting, "--"]
    pod += command(tiny_dataset, tmp_path, *LONG, "optim.epochs=4000")
    for starts in (1, 2):
        begun = subprocess.Popen(pod, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + GENEROUS
        while starts not in [json.loads(f.read_text())["starts"] for f in counts(run)]:
            assert begun.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(begun.pid, signal.SIGKILL)
        begun.communicate()
    last = subprocess.run(pod, stderr=subprocess.PIPE, text=True, timeout=GENEROUS)
    assert last.returncode == 1, last.stderr
    assert "has started 2 times" in last.stderr
    assert not counts(run)


def test_a_start_is_counted_before_torch_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod with less memory than its import takes is killed in it, and would be without end."""
    run = tmp_path / "mae"

    def killed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_import_quietly", killed)
    counting = ["--nnodes", "1", "--run-folder", str(run), "--backoff-limit", "1", "--", "pretrain"]
    for starts in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            module._counted(counting)
        assert [json.loads(file.read_text())["starts"] for file in counts(run)] == [starts]
    with pytest.raises(TooManyRestarts, match="has started 2 times"):
        module._counted(counting)


@pytest.mark.parametrize(("seconds", "code"), [("30", 0), ("1", 140)])
def test_a_store_that_is_away_when_a_pod_starts(
    s3: S3, monkeypatch: pytest.MonkeyPatch, seconds: str, code: int
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(module, "_run", lambda options: begun.append("") or 0)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(RETRY_VARIABLE, "0.5")
    monkeypatch.setenv(OUTAGE_VARIABLE, seconds)
    with FaultyProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.last(3, "refuse")
        counting = ["--nnodes", "1", "--run-folder", s3.uri("runs"), "--backoff-limit", "1"]
        assert module.torchrun([*counting, "--", "pretrain"]) == code
    assert len(begun) == (1 if code == 0 else 0)


def counts(run: Path) -> list[Path]:
    """The files of pods that count their starts."""
    return [file for file in run.glob("restarts/*") if file.suffix == ".json"]
