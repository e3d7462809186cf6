"""What the launcher reads from objects: endings, reasons to wait, failures, differences, logs."""

from __future__ import annotations

from typing import Any

import pytest

from percmae.jobs import state
from percmae.jobs.logs import LogLines
from percmae.jobs.names import Object
from percmae.jobs.pods import Pods


def job(kind: str = "PyTorchJob", *conditions: Object, **spec: Any) -> Object:
    spec = spec or {"pytorchReplicaSpecs": {"Master": {}, "Worker": {}}}
    metadata = {"name": "j", "labels": {}}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": conditions}}


def true(kind: str, reason: str = "R", message: str = "m") -> Object:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def pod(name: str, born: str = "2026-01-01T00:00:00Z", uid: str = "", **status: Any) -> Object:
    metadata = {"name": name, "creationTimestamp": born, "uid": uid or name + born}
    return {"metadata": metadata, "status": {"phase": "Pending", **status}}


def ended(code: int, reason: str = "Error", at: str = "2026-01-01T00:01:00Z") -> list[Object]:
    terminated = {"exitCode": code, "reason": reason, "finishedAt": at}
    return [{"name": "pytorch", "state": {"terminated": terminated}}]


@pytest.mark.parametrize(
    ("kind", "conditions", "expected"),
    [
        ("PyTorchJob", [true("Created"), true("Running")], None),
        ("PyTorchJob", [true("Created"), true("Succeeded", message="done")], (True, "done")),
        ("PyTorchJob", [true("Failed", "PyTorchJobFailed", "no")], (False, "PyTorchJobFailed: no")),
        ("Job", [true("Complete", message="")], (True, "")),
        ("Job", [true("Failed", "DeadlineExceeded", "late")], (False, "DeadlineExceeded: late")),
        ("TrainJob", [true("Complete", message="ok")], (True, "ok")),
        ("Job", [{**true("Failed"), "status": "False"}], None),
    ],
)
def test_endings(kind: str, conditions: list[Object], expected: object) -> None:
    assert state.ending(job(kind, *conditions)) == expected


def test_a_new_job_has_no_status() -> None:
    assert state.ending({"kind": "Job", "metadata": {"name": "j"}, "spec": {}}) is None


def test_rank_zero() -> None:
    pods = [pod("j-worker-0"), pod("j-master-0"), pod("j-worker-10")]
    assert state.rank_zero(job(), pods) == pods[1]
    elastic = job(pytorchReplicaSpecs={"Worker": {}})
    assert state.rank_zero(elastic, pods) == pods[0]
    tried = [pod("j-x", "2026-01-01T00:00:00Z"), pod("j-y", "2026-01-01T00:00:09Z")]
    assert state.rank_zero(job("Job"), tried) == tried[1], "the last try"
    nodes = [pod("j-node-0-1-abc"), pod("j-node-0-0-abc"), pod("j-node-0-0x")]
    assert state.rank_zero(job("TrainJob"), nodes) == nodes[1]
    assert state.rank_zero(job(), []) is None


def test_reasons_to_wait() -> None:
    held = job("PyTorchJob", true("Suspended"))
    held["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    assert state.waits_for(held, [], []) == "suspended, waiting in queue gpus"
    events = [
        {"type": "Normal", "reason": "Good", "message": "x", "lastTimestamp": "2026-01-02"},
        {"type": "Warning", "reason": "Old", "message": "y", "lastTimestamp": "2026-01-01"},
        {"type": "Warning", "reason": "FailedCreatePod", "message": "exceeded quota: q"}
        | {"lastTimestamp": "2026-01-02"},
    ]
    assert state.waits_for(job(), [], events) == "FailedCreatePod: exceeded quota: q"
    assert "operator" in state.waits_for(job(), [], [])
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    waiting = pod("p", conditions=[{**unscheduled, "message": "0/3 nodes: Insufficient gpu"}])
    assert state.waits_for(job(), [waiting], []) == (
        "pod p: Unschedulable: 0/3 nodes: Insufficient gpu"
    )
    assert state.waits_for(job(), [pod("p")], []) == "starting p"


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_stuck(where: str) -> None:
    def waiting(reason: str) -> Object:
        about = {"reason": reason, "message": "Back-off\npulling  image"}
        return pod("p", **{where: [{"name": "c", "image": "i:1", "state": {"waiting": about}}]})

    assert state.stuck(waiting("ImagePullBackOff")) == "ImagePullBackOff: Back-off pulling image"
    assert state.stuck(waiting("ContainerCreating")) is None
    assert state.stuck(waiting("PodInitializing")) is None


def test_failures_come_in_the_order_they_happened() -> None:
    pods = [
        pod("a", phase="Failed", containerStatuses=ended(143, at="2026-01-01T00:02:00Z")),
        pod("b", phase="Failed", containerStatuses=ended(137, "OOMKilled")),
        pod("c", phase="Running", containerStatuses=[{"name": "x", "state": {"running": {}}}]),
        pod("d", phase="Succeeded", containerStatuses=ended(0, "Completed")),
    ]
    found = state.failures(pods)
    assert [str(f) for f in found] == [
        "pod b exited with 137 (OOMKilled)",
        "pod a exited with 143",
    ]
    evicted = pod("e", phase="Failed", reason="Evicted", message="low on memory", startTime="2")
    assert str(state.failures([evicted])[0]) == (
        "pod e was removed from its node (Evicted low on memory)"
    )


def test_an_earlier_life_of_a_container_counts() -> None:
    terminated = ended(1)[0]["state"]
    status = {"name": "c", "state": {"running": {}}, "lastState": terminated}
    found = state.failures([pod("p", phase="Running", containerStatuses=[status])])
    assert [f.code for f in found] == [1]


def test_differences_leave_out_what_the_server_adds() -> None:
    wanted = {"spec": {"a": 1, "list": [{"x": 1}], "gone": "y"}}
    found = {"spec": {"a": 2, "list": [{"x": 1, "default": 5}], "more": 1}, "status": {}}
    assert list(state.differences(wanted, found)) == [
        "spec.a: 2 there, 1 asked for",
        "spec.gone: nothing there, y asked for",
    ]
    assert list(state.differences({"l": [1, 2]}, {"l": [1]})) == ["l: [1] there, [1, 2] asked for"]


# Logs ---------------------------------------------------------------------------------------


def stamp(second: int, nano: int) -> str:
    return f"2026-01-01T00:00:{second:02}.{nano:09}Z"


def test_lines_are_shown_once_over_broken_connections() -> None:
    """The server starts over at a whole second; some lines share a time."""
    log = [(stamp(s, n), f"{s} {n} {i}") for s in range(4) for n in (0, 5, 5, 70) for i in (0, 1)]
    for cut in range(len(log) + 1):
        lines, shown = LogLines(), []
        lines.resume()
        shown += [text for t, line in log[:cut] if (text := lines.new(f"{t} {line}")) is not None]
        lines.resume()
        since = lines.since
        again = [(t, line) for t, line in log if since is None or t[:19] >= since[:19]]
        shown += [text for t, line in again if (text := lines.new(f"{t} {line}")) is not None]
        assert shown == [line for _, line in log], f"cut at {cut}"


def test_times_of_any_precision_are_in_order() -> None:
    lines = LogLines()
    assert lines.new("2026-01-01T00:00:01.9Z a") == "a"
    assert lines.new("2026-01-01T00:00:01.95Z b") == "b"
    assert lines.new("2026-01-01T00:00:02Z c") == "c"
    assert lines.new("2026-01-01T00:00:01.951Z old") is None


def test_what_the_node_says_is_no_line_of_the_log() -> None:
    assert LogLines().new("error: code = NotFound desc = no such container") is None
    assert LogLines().new("") is None


def test_an_empty_line_is_a_line() -> None:
    assert LogLines().new("2026-01-01T00:00:01Z ") == ""


# Pods over a job's life ----------------------------------------------------------------------


def pods_of(*lives: Object) -> Pods:
    found = Pods(None, "x", lambda: None)  # type: ignore[arg-type]
    for life in lives:
        found._remember(life)
    return found


def test_a_crash_loop_is_told_from_being_moved_now_and_then() -> None:
    oom = {"phase": "Failed", "containerStatuses": ended(137, "OOMKilled")}
    quick = [pod("p", f"2026-01-01T00:{minute:02}:00Z", **oom) for minute in range(4)]
    assert pods_of(*quick).crash_loop(3) is None
    assert pods_of(*quick).crash_loop(2) == (
        "pod p was started 4 times; pod p exited with 137 (OOMKilled)"
    )
    moved = [pod("p", f"2026-01-{day:02}T00:00:00Z", **oom) for day in range(1, 20)]
    assert pods_of(*moved).crash_loop(3) is None
    assert pods_of(*moved, *[pod("p", f"2026-02-01T00:0{m}:00Z") for m in range(5)]).crash_loop(3)


def test_a_replaced_pod_is_told_once() -> None:
    before = pod("p", phase="Failed", containerStatuses=ended(143))
    found = pods_of(before, pod("p", "2026-01-01T00:05:00Z"), pod("q"))
    assert found.replaced() == ["pod p is new: pod p exited with 143"]
    assert found.replaced() == []
    assert found.failures() == [], "its present life has not failed"
