"""``python -m pipelines submit`` against a server that answers KFP's API over HTTP."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import urllib3
from kfp_server import Server, running

from pipelines.__main__ import main
from pipelines.server import api as kfp_api
from pipelines.server import submit

IMAGE = "registry.example/percmae-pipeline@sha256:" + "1" * 64
OTHER = "registry.example/percmae-pipeline@sha256:" + "2" * 64


pytestmark = pytest.mark.usefixtures("alone")


def sent(server: Server, *words: str, image: str = IMAGE) -> int:
    return main(["submit", "--host", server.url, "--image", image, *words])


def names(server: Server) -> list[str]:
    return [version["name"] for version in server.versions.values()]


def test_the_first_submit(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--param", "seeds=[0, 1]", "--param", "tag=007", "--param", "fine_tune=false"]
    words += ["--param", "nodes=2", "--param", "job=[memory=64Gi]"]
    assert sent(kfp, *words, "--name", "first", "--service-account", "percmae-launcher") == 0
    out, err = capsys.readouterr()
    (run,) = kfp.runs.values()
    assert out == f"{kfp.url}/#/runs/details/{run['run_id']}\n"
    assert "warning" not in err
    # Text stays text, whatever it looks like; the rest has the pipeline's types.
    assert run["runtime_config"]["parameters"] == {
        "seeds": [0, 1],
        "tag": "007",
        "fine_tune": False,
        "nodes": 2,
        "job": ["memory=64Gi"],
    }
    assert (run["display_name"], run["service_account"]) == ("first", "percmae-launcher")
    (experiment,) = kfp.experiments.values()
    assert experiment["display_name"] == "percmae"
    assert run["experiment_id"] == experiment["experiment_id"]
    (pipeline,) = kfp.pipelines.values()
    assert (pipeline["name"], pipeline["display_name"]) == (
        "percmae-train",
        "Perceptual MAE: train",
    )
    (version,) = kfp.versions.values()
    assert version["name"] == "abc1234"
    assert IMAGE in version["description"]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert set(version["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}


def test_a_version_for_each_content(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of the second page of versions, and whatever is newest."""
    assert [sent(kfp, image=image) for image in (IMAGE, IMAGE, OTHER, IMAGE)] == [0] * 4
    assert names(kfp) == ["abc1234", "abc1234-2"]
    assert "version abc1234 of percmae-train has this content already" in capsys.readouterr().err
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in kfp.runs.values()]
    first, second = kfp.versions
    assert used == [first, first, second, first]
    assert len(kfp.experiments) == len(kfp.pipelines) == 1


def test_other_settings_of_the_pods_are_another_content(kfp: Server) -> None:
    assert sent(kfp) == sent(kfp, "--store-secret", "other") == 0
    assert names(kfp) == ["abc1234", "abc1234-2"]


def test_a_name_that_someone_else_has_just_taken(kfp: Server) -> None:
    kfp.fail("POST", "/upload_version$", 409)
    assert sent(kfp) == 0
    assert names(kfp) == ["abc1234-2"]


def test_a_pipeline_that_someone_else_has_just_made(kfp: Server) -> None:
    assert sent(kfp) == 0
    kfp.fail("GET", "/pipelines/names/", 404)
    assert sent(kfp) == 0
    assert len(kfp.pipelines) == len(kfp.versions) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("varian=mae", r"no parameter 'varian'; did you mean 'variant'"),
        ("seeds", r"parameter 'seeds': give name=value"),
        ("seeds=0,1", r"parameter seeds=0,1: should be a list such as \[0, 1\]"),
        ("seeds=[0, x]", r"seeds=\[0, 'x'\]: should be whole numbers"),
        ("seeds=[0, 0]", r"one or more different"),
        ("overrides=[1]", r"overrides=\[1\]: should be texts"),
        ("overrides=[optim.epoch=3]", r"did you mean 'optim.epochs'"),
        ("launcher=pytorch", r"did you mean 'pytorchjob'"),
        ("nodes=two", r"nodes=two: should be a whole number"),
        ("nodes=0", r"nodes"),
        ("job=[memroy=1Gi]", r"did you mean 'memory'"),
        ("job=[1]", r"job=\[1\]: should be texts such as \[memory=64Gi\]"),
        ("fine_tune=1", r"fine_tune=1: should be true or false"),
        ("fine_tune=[", r"fine_tune=\[: should be true or false"),
        ("variant=ssmi", r"unknown variant 'ssmi'; did you mean 'ssim'"),
        ("tag=a", r"parameter 'tag' is given twice"),
    ],
)
def test_parameters_that_do_not_fit(
    kfp: Server, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert sent(kfp, "--param", "tag=a", "--param", word) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
    assert kfp.requests == []


def test_an_image_without_a_digest_is_warned_about(
    kfp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sent(kfp, image="percmae-pipeline:1") == 0
    assert "WARNING: image percmae-pipeline:1 is not pinned by digest" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["file", "variable"])
def test_the_token_is_sent_and_never_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    words = []
    if how == "file":
        (tmp_path / "token").write_text("s3cret\n")
        words = ["--token", str(tmp_path / "token")]
    else:
        monkeypatch.setenv("PERCMAE_KFP_TOKEN", "s3cret")
    with running(Server(token="s3cret")) as kfp:
        assert sent(kfp, *words) == 0
    assert {bearer for _, _, bearer in kfp.requests} == {"Bearer s3cret"}
    assert "s3cret" not in "".join(capsys.readouterr())


def test_a_token_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the token of a pod does: the file is read again for every call."""
    file = tmp_path / "token"
    file.write_text("one")
    monkeypatch.setattr(submit, "_POLL", 0.01)
    with running(Server(token="one")) as kfp:
        upload = submit.upload

        def renewed(*args: object) -> object:
            made = upload(*args)  # type: ignore[arg-type]
            file.write_text("two")
            kfp.token = "two"
            return made

        monkeypatch.setattr(submit, "upload", renewed)
        assert sent(kfp, "--token", str(file)) == 0
    assert {bearer for _, _, bearer in kfp.requests} == {"Bearer one", "Bearer two"}


@pytest.mark.parametrize("token", [None, "wrong"])
def test_access_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("PERCMAE_KFP_TOKEN", token)
    with running(Server(token="right")) as kfp:
        assert sent(kfp) == 2
        err = capsys.readouterr().err
    assert f"error: KFP at {kfp.url} refused access (401)" in err
    assert "--token FILE or PERCMAE_KFP_TOKEN" in err
    assert len(err.splitlines()) == 1
    assert not kfp.pipelines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("", "should hold one token"),
        ("a b", "should hold one token"),
    ],
)
def test_token_files_that_hold_none(
    kfp: Server,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str | None,
    message: str,
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    assert sent(kfp, "--token", str(file)) == 2
    assert message in capsys.readouterr().err
    assert kfp.requests == []


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with running(Server()) as kfp:
        pass
    began = time.monotonic()
    assert sent(kfp) == 1
    assert time.monotonic() - began < 15  # kfp.Client alone tries for 25 seconds
    err = capsys.readouterr().err
    assert f"error: KFP at {kfp.url} cannot be reached" in err
    assert "Connection refused" in err
    assert len(err.splitlines()) == 1


def test_something_else_answers(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    kfp.page_of_html = True
    assert sent(kfp) == 1
    err = capsys.readouterr().err
    assert f"{kfp.url}: something else than KFP answers there, perhaps a login page" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "where is KFP?"),
        (["--host", "kfp.example"], "'kfp.example': give its URL"),
        (["--host", "http://a", "--port-forward"], "give one of them"),
    ],
)
def test_nowhere_to_go(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["submit", "--image", IMAGE, *words]) == 2
    assert message in capsys.readouterr().err


def test_found_inside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    where = kfp_api.Connection(kfp_namespace="ml")
    assert kfp_api._host(where) == "http://ml-pipeline.ml.svc.cluster.local:8888"
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "https://kfp.example/")
    assert kfp_api._host(where) == "https://kfp.example"


def test_a_token_over_plain_http_is_warned_about(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCMAE_KFP_TOKEN", "s3cret")
    assert main(["submit", "--image", IMAGE, "--host", "http://kfp.invalid"]) == 1
    err = capsys.readouterr().err
    assert "http://kfp.invalid: the token is sent unencrypted" in err
    assert "s3cret" not in err


def test_a_server_that_fails(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    kfp.fail("POST", "/runs$", 500)
    assert sent(kfp) == 1
    err = capsys.readouterr().err
    assert "failed (500) while starting the run: Internal Server Error: the test wants" in err
    assert not kfp.runs


# Waiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL", 0.01)


@pytest.mark.usefixtures("quick")
def test_waiting_for_the_end(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    kfp.script = [{"state": s} for s in ("PENDING", "RUNNING", "RUNNING", "SUCCEEDED")]
    assert sent(kfp, "--wait") == 0
    states = re.findall(r"run is (\w+)", capsys.readouterr().err)
    assert states == ["pending", "running", "succeeded"]


def task(name: str, state: str, **more: object) -> dict[str, object]:
    return {"display_name": name, "state": state, "state_history": [{"state": state}], **more}


def details(*tasks: dict[str, object]) -> dict[str, object]:
    return {"run_details": {"task_details": list(tasks)}}


# Tasks as the API server reports an Argo workflow: loops and the whole fail as well.
FAILED = details(
    task("root", "FAILED"),
    task("root-driver", "SUCCEEDED"),
    task("ingest", "SUCCEEDED"),
    task("for-loop-2", "FAILED"),
    task("pretrain-driver", "SUCCEEDED"),
    task("pretrain", "FAILED"),
    task("executor", "FAILED"),
)


@pytest.mark.usefixtures("quick")
def test_a_run_that_fails(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """KFP's API itself does not say why."""
    kfp.script = [{"state": "RUNNING"}, {"state": "FAILED", **FAILED}]
    assert sent(kfp, "--wait") == 1
    (run_id,) = kfp.runs
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "percmae: error: run failed: Pretrain; its log says why: kubectl -n kubeflow logs -l "
        f"pipeline/runid={run_id} -c main --tail 3; {kfp.url}/#/runs/details/{run_id}"
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"state": "CANCELED"}, "run canceled: KFP names no failed step"),
        ({"state": "FAILED", **details(task("root", "FAILED"), task("odd", "FAILED"))}, "odd;"),
    ],
)
def test_ends_that_say_less(
    kfp: Server, capsys: pytest.CaptureFixture[str], end: dict[str, object], message: str
) -> None:
    kfp.script = [end]
    assert sent(kfp, "--wait") == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_run_that_somebody_terminates(
    kfp: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP says in the end that it failed, and that steps did, as of any other."""
    kfp.script = [{"state": "RUNNING", **FAILED}]
    sleep = time.sleep

    def terminate(seconds: float) -> None:
        (run_id,) = kfp.runs
        if kfp.runs[run_id]["state"] == "RUNNING":
            url = f"{kfp.url}/apis/v2beta1/runs/{run_id}:terminate"
            assert urllib3.request("POST", url).status == 200
        sleep(seconds)

    monkeypatch.setattr("pipelines.server.submit.time.sleep", terminate)
    assert sent(kfp, "--wait") == 1
    err = capsys.readouterr().err
    assert re.findall(r"run is (\w+)", err) == ["running", "canceling", "failed"]
    assert "error: run terminated: somebody has told KFP to end it; http" in err.splitlines()[-1]


@pytest.mark.usefixtures("quick")
def test_a_run_of_which_nothing_starts(
    kfp: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_STILL", 0.0)
    waits = details(task("root", "RUNNING"), task("root-driver", "PENDING"))
    works = details(task("root", "RUNNING"), task("root-driver", "RUNNING"))
    end = {"state": "SUCCEEDED"}
    for middle, times in ((waits, 1), (works, 0)):
        kfp.script = [{"state": "RUNNING", **middle}] * 4 + [end]
        assert sent(kfp, "--wait") == 0
        err = capsys.readouterr().err
        assert err.count("nothing of the run has started for") == times
        assert err.count("describe pods -l pipeline/runid=") == times


@pytest.mark.usefixtures("quick")
def test_waiting_outlives_a_restart_of_the_server(kfp: Server) -> None:
    kfp.script = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    for status in (503, 500, 401):
        kfp.fail("GET", "/runs/", status)
    assert sent(kfp, "--wait") == 0
    assert kfp.faults == []


@pytest.mark.usefixtures("quick")
def test_waiting_does_not_outlive_a_long_silence(
    kfp: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_SILENCE", 0.0)
    kfp.fail("GET", "/runs/", 503)
    assert sent(kfp, "--wait") == 1
    assert "(503)" in (err := capsys.readouterr().err)
    assert "the run may go on: http" in err


@pytest.mark.usefixtures("quick")
def test_a_run_that_is_deleted_meanwhile(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    kfp.fail("GET", "/runs/", 404)
    assert sent(kfp, "--wait") == 2
    assert "(404)" in capsys.readouterr().err
