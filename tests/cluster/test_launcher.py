"""The launcher against a real API server, operator and kubelet: what it says of everything that
can happen to a job, and that nothing is left behind.

As the launcher's own service account, with real pods that end as told (toy/behave.py).

More than 400 lines, in one file: its tests share jobs and their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from kube import TOY, Kube, gone, lines_of, submit, toy_settings, wait

from percmae.errors import UserError
from percmae.jobs.client import Client
from percmae.jobs.names import CLAIMS, PYTORCH_JOB
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.work import Work

RUNS = ("run-a", "run-b")


def test_a_job_that_goes_well(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "well", "lines=20 pause=0.1", "nodes=2")
    assert started.end() == 0, started.said
    assert lines_of(started.said) == list(range(20)), "every line of the first pod, once"
    assert "is done" in started.said
    job = kube.get("pytorchjob", started.name)
    assert {k: v["replicas"] for k, v in job["spec"]["pytorchReplicaSpecs"].items()} == {
        "Master": 1,
        "Worker": 1,
    }
    for pod in kube.pods(started.name):
        assert pod["spec"]["serviceAccountName"] == "percmae-train"
        assert not any("serviceaccount" in str(v) for v in pod["spec"]["volumes"])
        assert [container["image"] for container in pod["spec"]["containers"]] == [TOY]


def test_exit_1_in_a_worker(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    toy = "exit=1 only=worker patience=600"
    started = submit(launcher_config, tmp_path, "exit-1", toy, "nodes=2")
    assert started.end() == 1
    *_, last = started.said.splitlines()
    assert f"pod {started.name}-worker-0 exited with 1: the toy was told to end with 1" in last
    assert f"last lines of pod {started.name}-worker-0:" in started.said
    phases = [pod["status"]["phase"] for pod in kube.pods(started.name)]
    assert "Running" not in phases, "no pod goes on"


def test_bad_input_is_exit_code_2_and_can_be_tried_again(
    kube: Kube, launcher_config: Path, tmp_path: Path
) -> None:
    started = submit(launcher_config, tmp_path, "exit-2", "lines=1 exit=2")
    assert started.end() == 2, started.said
    first = kube.get("pytorchjob", started.name)["metadata"]["uid"]
    again = submit(launcher_config, tmp_path, "exit-2", "lines=1")
    assert again.end() == 0, again.said
    assert again.name == started.name, "the same work has the same name"
    assert "ended badly" in again.said
    assert kube.get("pytorchjob", again.name)["metadata"]["uid"] != first


def test_out_of_memory_is_not_tried_for_ever(
    kube: Kube, launcher_config: Path, tmp_path: Path
) -> None:
    toy = "lines=1 take=300"
    started = submit(launcher_config, tmp_path, "oom", toy, "backoff_limit=1")
    assert started.end(180) == 1
    assert "exited with 137 (OOMKilled)" in started.said.splitlines()[-1]
    assert "was started 3 times" in started.said.splitlines()[-1]
    gone(kube, started)


def test_an_image_that_does_not_exist(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    job = ("image=percmae-none:1", "stuck_deadline=6")
    started = submit(launcher_config, tmp_path, "no-image", "", *job)
    assert started.end() == 1
    assert re.search(r"is waiting: pod .*: (ErrImagePull|ImagePullBackOff)", started.said)
    assert "percmae-none:1" in started.said.splitlines()[-1]
    gone(kube, started)


def test_no_room_says_why_it_waits(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    job = ("cpu=4000", "queue_deadline=8")
    started = submit(launcher_config, tmp_path, "no-room", "", *job)
    assert started.end() == 1
    assert re.search(r"is waiting: pod .*: Unschedulable: .*Insufficient cpu", started.said)
    assert "job setting queue_deadline" in started.said.splitlines()[-1]
    gone(kube, started)


def test_quota_says_why_it_waits(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"requests.cpu": "1m"}},
    }
    kube.apply(quota)
    try:
        started = submit(launcher_config, tmp_path, "quota", "lines=1")
        started.wait_for("exceeded quota")
    finally:
        kube("delete", "resourcequota", "small")
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 143


@pytest.mark.parametrize(
    ("kind", "setting", "hold", "first"),
    [
        ("pytorchjob", "nodes=2", '{"spec": {"runPolicy": {"suspend": %s}}}', "%s-master-0"),
        ("job", "kind=job", '{"spec": {"suspend": %s}}', "job/%s"),
    ],
)
def test_suspended_says_so(
    kube: Kube,
    launcher_config: Path,
    tmp_path: Path,
    kind: str,
    setting: str,
    hold: str,
    first: str,
) -> None:
    """What Kueue does: the job is held back, makes no pods, says so, and is let go later."""
    started = submit(launcher_config, tmp_path, "held", "lines=2 hold=1", setting)
    started.wait_for("toy: line 1")
    kube("patch", kind, started.name, "--type=merge", "-p", hold % "true")
    started.wait_for("is waiting: suspended")
    wait(lambda: not kube.pods(started.name))
    kube("patch", kind, started.name, "--type=merge", "-p", hold % "false")
    kube.let_go(first % started.name)
    assert started.end() == 0, started.said


def test_cancelled_by_term(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "term", "lines=3000", "nodes=2")
    started.wait_for("toy: line 3")
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 143
    assert "toy: stopping" in started.said, "the pod was told, and had time"
    assert not kube.pods(started.name)
    assert kube.get("pytorchjob", started.name) is None


def test_a_worker_pod_is_deleted(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "deleted-pod", "lines=60 hold=1", "nodes=2")
    started.wait_for("toy: line 2")
    kube("delete", "pod", f"{started.name}-worker-0", "--wait=false")
    started.wait_for(f"pod {started.name}-worker-0 is new")
    kube.let_go(f"{started.name}-master-0")
    assert started.end() == 0, started.said
    assert lines_of(started.said) == list(range(60))


def test_a_launcher_is_killed_and_started_again(
    kube: Kube, launcher_config: Path, tmp_path: Path
) -> None:
    first = submit(launcher_config, tmp_path, "killed", "lines=60 hold=1")
    first.wait_for("toy: line 3")
    first.process.kill()
    first.process.wait()
    uid = kube.get("pytorchjob", first.name)["metadata"]["uid"]
    second = submit(launcher_config, tmp_path, "killed", "lines=60 hold=1")
    second.wait_for("is under way: following it")
    kube.let_go(f"{first.name}-master-0")
    assert second.end() == 0, second.said
    assert kube.get("pytorchjob", first.name)["metadata"]["uid"] == uid, "one job in all"
    assert lines_of(second.said) == list(range(60)), "the log from its beginning"


def test_two_launchers_at_once(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    both = [submit(launcher_config, tmp_path, "two", "lines=30 hold=1") for _ in range(2)]
    for one in both:
        one.wait_for("toy: line 29")
    kube.let_go(f"{both[0].name}-master-0")
    assert [one.end() for one in both] == [0, 0]
    assert sum("created in namespace" in one.said for one in both) == 1
    assert all(lines_of(one.said) == list(range(30)) for one in both)


def test_another_spec_under_way_is_refused(
    kube: Kube, launcher_config: Path, tmp_path: Path
) -> None:
    first = submit(launcher_config, tmp_path, "other", "lines=3000")
    first.wait_for("toy: line 1")
    second = submit(launcher_config, tmp_path, "other", "lines=3000", "memory=128Mi")
    assert second.end() == 2
    assert "96Mi there, 128Mi asked for" in second.said.splitlines()[-1]
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 130
    gone(kube, first)


def test_a_job_removed_by_someone_else(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "removed", "lines=3000")
    started.wait_for("toy: line 1")
    kube("delete", "pytorchjob", started.name, "--wait=false")
    assert started.end() == 1
    assert "was removed from the cluster by someone else" in started.said


def test_a_plain_job(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "plain", "lines=10", "kind=job")
    assert started.end() == 0, started.said
    assert lines_of(started.said) == list(range(10))
    failing = submit(launcher_config, tmp_path, "plain-2", "lines=1 exit=2", "kind=job")
    assert failing.end() == 2, failing.said
    assert len(kube.pods(failing.name)) == 1, "bad input is not tried again"


class Breaker:
    """A TCP proxy before the API server that can break all connections and refuse new ones."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self._broken = False
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def broken(self, broken: bool) -> None:
        """Break what there is and refuse what comes, or let it through again."""
        self._broken = broken
        while broken and self._pairs:
            one = self._pairs.pop()
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()
        self.broken(True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._broken:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._pairs += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_the_api_server_goes_away_and_comes_back(kube: Kube, tmp_path: Path) -> None:
    """In the middle of the watch and of the log; nothing is lost, nothing shown twice."""
    server = yaml.safe_load(kube("config", "view", "--minify", "-o", "json"))
    breaker = Breaker(server["clusters"][0]["cluster"]["server"])
    config = kube.kubeconfig("percmae-launcher", tmp_path, breaker.url)
    started = submit(config, tmp_path, "away", "lines=100 pause=0.1", "nodes=2")
    started.wait_for("toy: line 10")
    breaker.broken(True)
    started.wait_for("API server does not answer")
    breaker.broken(False)
    assert started.end() == 0, started.said
    assert lines_of(started.said) == list(range(100))
    breaker.close()


def test_without_the_right_to_create_jobs(kube: Kube, tmp_path: Path) -> None:
    config = kube.kubeconfig("percmae-train", tmp_path)
    started = submit(config, tmp_path, "no-right", "lines=1")
    assert started.end() == 1
    last = started.said.splitlines()[-1]
    assert "percmae-train" in last
    assert "cannot create resource" in last
    assert "percmae doctor --cluster" in last


def test_what_a_pipelines_run_left_behind_is_removed(
    kube: Kube, launcher_config: Path, tmp_path: Path
) -> None:
    """The last step of a pipeline, after a step that launched was killed without a word."""
    environment = {**os.environ, "KUBECONFIG": str(launcher_config)}
    settings = toy_settings("lines=3000")
    start = f"""
from percmae.jobs.launcher import submit
from percmae.jobs.settings import job_settings
from percmae.jobs.work import Work
for run in {RUNS!r}:
    work = Work("pretrain", ("pretrain",), run, run.encode().hex() * 4, True)
    submit(work, job_settings({settings!r}), pipeline_run=run)
"""
    subprocess.run([sys.executable, "-c", start], check=True, env=environment)
    assert [len(kube.get("pytorchjob", selector=f"{CLAIMS}{run}")) for run in RUNS] == [1, 1]
    clean = "from percmae.stages import steps; steps.clean('run-a', 'pytorchjob', [])"
    done = subprocess.run(
        [sys.executable, "-c", clean], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "was still under way: removed" in done.stderr
    wait(lambda: not kube.get("pytorchjob", selector=f"{CLAIMS}run-a"))
    (other,) = kube.get("pytorchjob", selector=f"{CLAIMS}run-b")
    assert "deletionTimestamp" not in other["metadata"], "another run's job goes on"
    kube("delete", "pytorchjob", other["metadata"]["name"])


def test_a_job_that_two_runs_follow_goes_with_the_last(kube: Kube, launcher_config: Path) -> None:
    environment = {**os.environ, "KUBECONFIG": str(launcher_config)}
    start = f"""
from percmae.jobs.launcher import clean, submit
from percmae.jobs.settings import job_settings
from percmae.jobs.work import Work
work = Work("pretrain", ("pretrain",), "both", "0" * 16, True)
for run in {RUNS!r}:
    submit(work, job_settings({toy_settings("lines=3000")!r}), pipeline_run=run)
for run in {RUNS!r} * 2:
    print(clean(run, None))
"""
    command = [sys.executable, "-c", start]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    removed = "['PyTorchJob pretrain-both-00000000']"
    assert done.stdout.splitlines() == ["[]", removed, "[]", "[]"]
    wait(lambda: kube.get("pytorchjob", "pretrain-both-00000000") is None)


def test_a_field_that_the_cluster_does_not_know_is_refused(
    kube: Kube, launcher_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older definition would not know one of ours: it would be dropped without a word."""
    monkeypatch.setenv("KUBECONFIG", str(launcher_config))
    work = Work("pretrain", ("pretrain",), "newer", "0" * 16, trains=True)
    made = job_object(work, job_settings(toy_settings("lines=1")))
    made["spec"]["runtimePatches"] = []
    with pytest.raises(UserError, match=r"is an older one: .*unknown field \"spec.runtimePatches"):
        Client(kube.namespace).create(PYTORCH_JOB, made)
    assert kube.get("pytorchjob", work.name) is None


SEAT, CHOSEN = "percmae.test/seat", "percmae.test/chosen"


@pytest.fixture
def seats(kube: Kube) -> Iterator[Callable[[int], None]]:
    """``seats(2)``: how many of an invented device a node has, which only this test asks for."""
    node = kube.get("nodes")[0]["metadata"]["name"]
    path = f"/status/capacity/{SEAT.replace('/', '~1')}"

    def patch(operation: dict[str, object]) -> None:
        done = ("patch", "node", node, "--subresource=status", "--type=json")
        kube(*done, "-p", json.dumps([operation]))

    def have(count: int) -> None:
        patch({"op": "add", "path": path, "value": str(count)})

    kube("label", "node", node, "--overwrite", f"{CHOSEN}=yes")
    try:
        yield have
    finally:
        kube("label", "node", node, f"{CHOSEN}-")
        patch({"op": "remove", "path": path})


def test_two_trainings_that_hold_what_the_other_needs(
    kube: Kube, launcher_config: Path, tmp_path: Path, seats: Callable[[int], None]
) -> None:
    """Two seeds of two pods each, on room for two pods, and each has got one: both end well."""
    job = ["nodes=2", "gpus=1", f"gpu_resource={SEAT}", f"node_selector={{{CHOSEN}: 'yes'}}"]
    node = kube.get("nodes")[0]["metadata"]["name"]

    def placed(name: str) -> int:
        return sum("nodeName" in pod["spec"] for pod in kube.pods(name))

    seats(1)
    older = submit(launcher_config, tmp_path, "older", "lines=2 hold=1", *job)
    wait(lambda: placed(older.name) == 1, 180, lambda: older.said)
    # The seat that comes free is the younger one's: the older may have no other on this node now.
    kube("label", "node", node, f"{CHOSEN}-")
    younger = submit(launcher_config, tmp_path, "younger", "lines=2 hold=1", *job[:-1])
    seats(2)
    wait(lambda: placed(younger.name) == 1, 180, lambda: younger.said)
    kube("label", "node", node, "--overwrite", f"{CHOSEN}=yes")
    younger.wait_for(f"makes room for {older.name}, which began before it")
    for started in (older, younger):
        wait(lambda name=started.name: placed(name) == 2, 300, lambda: kube("get", "pods"))
        for role in ("worker", "master"):
            kube.let_go(f"{started.name}-{role}-0")
        assert started.end() == 0, started.said
    assert "its turn has come" in younger.said


def test_detached_and_found_again(kube: Kube, launcher_config: Path, tmp_path: Path) -> None:
    toy = "lines=40 hold=1"
    started = submit(launcher_config, tmp_path, "detached", toy, options=("--detach",))
    assert started.end() == 0
    assert started.said.splitlines()[-1] == started.name
    again = submit(launcher_config, tmp_path, "detached", toy)
    again.wait_for("is under way: following it")
    kube.let_go(f"{started.name}-master-0")
    assert again.end() == 0, again.said
    assert lines_of(again.said) == list(range(40))
