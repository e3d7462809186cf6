"""The client of the Kubernetes API, asked over a real connection: patience, refusals, streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor.kube_server import NS, PODS, KubeServer

from percmae.errors import UserError
from percmae.jobs import client as client_module
from percmae.jobs.client import Client, Refused, Unreachable
from percmae.jobs.names import POD, PYTORCH_JOB, Object


class Faulty(KubeServer):
    """Refuses as told before it answers. asked: how often anything was read."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[int] = []
        self.asked = 0

    def get(self, path: str) -> tuple[int, Object | str]:
        self.asked += 1
        if self.faults:
            return self.faults.pop(0), {"message": "not\nnow"}
        return super().get(path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr(client_module, "_PAUSE", 0.01)
    with Faulty().running() as server:
        server.objects[f"{PODS}/p"] = {"kind": "Pod"}
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_what_may_pass_is_borne_and_told_once(
    server: Faulty, fault: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [fault, fault]
    assert Client("percmae", patience=60).get(f"{PODS}/p") == {"kind": "Pod"}
    assert server.asked == 3
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(
        f": the Kubernetes API server does not answer ({fault}: not now); trying again"
    )


@pytest.mark.parametrize("fault", [400, 401, 403, 404, 409, 422])
def test_what_does_not_pass_is_not_tried_again(server: Faulty, fault: int) -> None:
    server.faults = [fault, fault]
    with pytest.raises(Refused) as error:
        Client("percmae", patience=60).request("GET", f"{PODS}/p")
    assert (error.value.status, error.value.message) == (fault, "not now")
    assert server.asked == 1


def test_without_patience_every_failure_is_final(server: Faulty) -> None:
    server.faults = [503, 503]
    with pytest.raises(Refused, match="503: not now"):
        Client("percmae").get(f"{PODS}/p")
    assert server.asked == 1
    server.stop()
    with pytest.raises(Unreachable, match=f"no Kubernetes API server answers at {server.url}: "):
        Client("percmae").get(f"{PODS}/p")


def test_patience_has_an_end(server: Faulty) -> None:
    server.faults = [503] * 9
    with pytest.raises(Unreachable, match=f"{server.url} has not answered for 0 s: 503: not now"):
        Client("percmae", patience=0.05).get(f"{PODS}/p")
    server.stop()
    with pytest.raises(Unreachable, match=r"has not answered for 0 s: .*refused"):
        Client("percmae", patience=0.05).get(f"{PODS}/p")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "not now: the Kubernetes API server does not know who asks; log in again"),
        (403, "not now; `percmae doctor --cluster` says what is missing"),
        (422, f"GET {PODS}/p: 422: not now"),
    ],
)
def test_a_refusal_says_what_to_do(server: Faulty, fault: int, said: str) -> None:
    server.faults = [fault]
    with pytest.raises(Refused) as error:
        Client("percmae").get(f"{PODS}/p")
    assert str(error.value).startswith(said)


def test_a_kind_that_the_cluster_lacks_is_named(server: Faulty) -> None:
    with pytest.raises(Refused, match=r"has no pytorchjobs of kubeflow.org/v1 or no namespace n; "):
        Client("n").select(PYTORCH_JOB)
    server.refused["/apis/kubeflow.org/v1/namespaces/n/pytorchjobs"] = (404, "page not found")
    with pytest.raises(Refused, match=r"has no pytorchjobs .* `percmae doctor --cluster` says"):
        Client("n").create(PYTORCH_JOB, {"metadata": {"name": "j"}})


def test_what_has_gone_need_not_be_deleted(server: Faulty) -> None:
    client = Client("percmae")
    client.delete(f"{PODS}/p", "uid")
    client.delete(f"{PODS}/p", "uid")
    assert server.deleted == [f"{PODS}/p"] * 2
    server.token = "known"
    with pytest.raises(Refused, match="Unauthorized"):
        client.delete(f"{PODS}/p", "uid")


def test_the_namespace_is_the_contexts_unless_another_is_named(server: Faulty) -> None:
    assert Client().path(POD) == "/api/v1/namespaces/default/pods"
    assert Client("percmae").path(POD, "p") == f"{NS}/pods/p"
    job = "/apis/kubeflow.org/v1/namespaces/percmae/pytorchjobs/j"
    assert Client("percmae").path(PYTORCH_JOB, "j") == job


def test_a_stream_ends_with_its_connection(server: Faulty) -> None:
    server.logs = "one\ntwo\nrest"
    client, stop = Client("percmae"), threading.Event()
    assert list(client.stream(f"{PODS}/p/log", stop)) == ["one", "two", "rest"]
    server.faults = [503]
    assert list(client.stream(f"{PODS}/p/log", stop)) == []
    stop.set()
    assert list(client.stream(f"{PODS}/p/log", stop)) == []
    server.stop()
    assert list(client.stream(f"{PODS}/p/log", threading.Event())) == []


def test_no_kubeconfig_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no cluster to use: .*; set KUBECONFIG"):
        Client()


def test_without_the_kubernetes_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    with pytest.raises(UserError, match=r"pip install 'percmae\[pipelines\]'"):
        Client()
