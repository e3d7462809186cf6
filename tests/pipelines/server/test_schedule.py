"""``python -m pipelines schedule`` against a server that answers KFP's API over HTTP."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kfp_server import Server

from pipelines.__main__ import main

IMAGE = "registry.example/percmae-pipeline@sha256:" + "1" * 64
OTHER = "registry.example/percmae-pipeline@sha256:" + "2" * 64
SUNDAYS = ("--cron", "0 2 * * 0")


pytestmark = pytest.mark.usefixtures("alone")


def sent(server: Server, *words: str, image: str | None = IMAGE) -> int:
    pinned = ["--image", image] if image else []
    return main(["schedule", "--host", server.url, *pinned, *words])


def only(server: Server) -> dict[str, Any]:
    (run,) = server.recurring.values()
    return run


def test_a_new_schedule(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--param", "tag=weekly", "--name", "weekly", "--service-account", "percmae-launcher"]
    assert sent(kfp, "--cron", "30 2 * * sun", *words) == 0
    run = only(kfp)
    assert run["display_name"] == "weekly"
    assert run["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * 0"}}
    assert (run["no_catchup"], run["max_concurrency"]) == (True, "1")
    assert (run["status"], run["service_account"]) == ("ENABLED", "percmae-launcher")
    assert run["runtime_config"]["parameters"] == {"tag": "weekly"}
    (version,) = kfp.versions
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version
    link = f"{kfp.url}/#/recurringrun/details/{run['recurring_run_id']}"
    assert capsys.readouterr().out.splitlines() == ["weekly: created", link]
    assert kfp.events == [("create enabled", 1)]


def test_the_same_again_changes_nothing(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for cron in ("0 2 * * 0", "0 2 * * SUN", "0 2 ? * 7"):
        assert sent(kfp, "--cron", cron, "--param", "seeds=[0, 1]") == 0
    out = capsys.readouterr().out
    assert re.findall(r": (\w+)$", out, re.M) == ["created", "unchanged", "unchanged"]
    assert kfp.events == [("create enabled", 1)]
    assert len(kfp.versions) == 1


def test_another_cron_replaces_it(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS, "--param", "tag=a") == 0
    kfp.runs["going"] = {"recurring_run_id": only(kfp)["recurring_run_id"]}
    capsys.readouterr()
    assert sent(kfp, "--cron", "0 4 * * 0", "--param", "tag=b") == 0
    assert only(kfp)["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 0"
    assert capsys.readouterr().out.splitlines()[:3] == [
        "cron: 0 2 * * 0 → 0 4 * * 0",
        "parameter tag: a → b",
        "percmae-train: replaced",
    ]
    # The new one exists before the old one is touched; two are never enabled, and none only from
    # one call to the next.
    assert kfp.events[1:] == [
        ("create disabled", 1),
        ("disable", 0),
        ("enable", 1),
        ("delete", 1),
    ]
    assert "going" in kfp.runs


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/recurringruns$"), ("POST", ":disable$"), ("POST", ":enable$")],
)
def test_a_replacement_that_fails_leaves_the_old_one(
    kfp: Server, capsys: pytest.CaptureFixture[str], method: str, path: str
) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    old = only(kfp)["recurring_run_id"]
    kfp.fail(method, path)
    assert sent(kfp, "--cron", "0 4 * * 0") == 1
    assert only(kfp)["recurring_run_id"] == old
    assert only(kfp)["status"] == "ENABLED"
    assert max(count for _, count in kfp.events) == 1
    assert "failed (500)" in capsys.readouterr().err
    assert sent(kfp, "--cron", "0 4 * * 0") == 0
    assert only(kfp)["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 0"


def test_an_old_one_that_cannot_be_deleted(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    kfp.fail("DELETE", "/recurringruns/")
    assert sent(kfp, "--cron", "0 4 * * 0") == 1
    assert "the same command removes what is left" in capsys.readouterr().err
    assert len(kfp.recurring) == 2
    (enabled,) = kfp.enabled("percmae-train")
    assert enabled["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 0"
    assert sent(kfp, "--cron", "0 4 * * 0") == 0
    assert capsys.readouterr().out.splitlines()[0] == "percmae-train: tidied up"
    assert only(kfp) == enabled
    assert max(count for _, count in kfp.events) == 1


def test_an_undoing_that_fails(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    kfp.fail("POST", ":enable$")
    kfp.fail("DELETE", "/recurringruns/")
    assert sent(kfp, "--cron", "0 4 * * 0") == 1
    assert "undoing it failed too" in capsys.readouterr().err
    assert kfp.enabled("percmae-train") == []
    assert sent(kfp, "--cron", "0 4 * * 0") == 0
    assert only(kfp)["status"] == "ENABLED"
    assert only(kfp)["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 0"


def test_killed_in_between(kfp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the old one disabled and the new one not enabled yet: the same command goes on."""
    assert sent(kfp, *SUNDAYS) == 0

    class Killed(BaseException):
        pass

    def dies(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.server.api.Kfp.enable", dies)
        with pytest.raises(Killed):
            sent(kfp, "--cron", "0 4 * * 0")
    assert [run["status"] for run in kfp.recurring.values()] == ["DISABLED", "DISABLED"]
    assert sent(kfp, "--cron", "0 4 * * 0") == 0
    assert only(kfp)["status"] == "ENABLED"
    assert only(kfp)["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 0"
    assert max(count for _, count in kfp.events) == 1


def test_duplicates_are_merged(kfp: Server) -> None:
    """KFP lets people make several of one name, in the UI for instance."""
    assert sent(kfp, *SUNDAYS) == 0
    first = only(kfp)
    twin = {**first, "recurring_run_id": "twin", "created_at": kfp.now()}
    kfp.recurring["twin"] = twin
    assert sent(kfp, *SUNDAYS) == 0
    assert only(kfp) == first


def test_one_that_was_paused_is_enabled(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    only(kfp)["status"] = "DISABLED"
    assert sent(kfp, *SUNDAYS, "--diff") == 1
    assert "enabled: no → yes" in capsys.readouterr().out
    assert sent(kfp, *SUNDAYS) == 0
    assert "percmae-train: enabled" in capsys.readouterr().out
    assert only(kfp)["status"] == "ENABLED"


# Versions


def test_pinned_to_the_repo(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    # Someone else's version, and the same again.
    assert main(["submit", "--host", kfp.url, "--image", OTHER]) == 0
    capsys.readouterr()
    assert sent(kfp, *SUNDAYS) == 0
    assert "percmae-train: unchanged" in capsys.readouterr().out
    assert sent(kfp, *SUNDAYS, image=OTHER) == 0
    out = capsys.readouterr().out
    assert "version: abc1234 → abc1234-2" in out
    assert "percmae-train: replaced" in out
    used = only(kfp)["pipeline_version_reference"]["pipeline_version_id"]
    assert kfp.versions[used]["name"] == "abc1234-2"


def test_always_the_latest(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The repo's version must then be the newest, or it is not what runs."""
    assert sent(kfp, *SUNDAYS, "--latest") == 0
    assert not only(kfp)["pipeline_version_reference"].get("pipeline_version_id")
    assert main(["submit", "--host", kfp.url, "--image", OTHER]) == 0
    capsys.readouterr()
    assert sent(kfp, *SUNDAYS, "--latest") == 0
    assert "percmae-train: updated" in capsys.readouterr().out
    assert [v["name"] for v in kfp.versions.values()] == ["abc1234", "abc1234-2", "abc1234-3"]
    assert kfp.events == [("create enabled", 1)]
    assert sent(kfp, *SUNDAYS, "--pinned") == 0
    assert "version: latest → abc1234" in capsys.readouterr().out


# Looking


def test_the_list(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, "--list") == 0
    assert capsys.readouterr().out == "no schedules\n"
    assert sent(kfp, *SUNDAYS) == 0
    assert sent(kfp, "--cron", "0 3 1 * *", "--name", "monthly", "--latest") == 0
    kfp.recurring["foreign"] = {
        **only_named(kfp, "monthly"),
        "recurring_run_id": "foreign",
        "display_name": "foreign",
        "pipeline_version_reference": {"pipeline_id": "another", "pipeline_version_id": "x"},
    }
    only_named(kfp, "monthly").update(status="DISABLED")
    capsys.readouterr()
    # Without --image the deployed one is no drift.
    assert sent(kfp, "--list", image=None) == 0
    head, *rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert head == ["NAME", "CRON", "NEXT (UTC)", "ENABLED", "VERSION", "DRIFT"]
    assert [row[:2] + row[3:] for row in rows] == [
        ["percmae-train", "0 2 * * 0", "yes", "abc1234", "none"],
        ["monthly", "0 3 1 * *", "no", "latest (abc1234)", "none"],
    ]
    assert re.fullmatch(r"Sun \d{4}-\d\d-\d\d 02:00", rows[0][2])
    assert rows[1][2] == "-"
    assert sent(kfp, "--list", image=OTHER) == 0
    assert "pipeline (1 field)" in capsys.readouterr().out


def only_named(server: Server, name: str) -> dict[str, Any]:
    (run,) = [run for run in server.recurring.values() if run["display_name"] == name]
    return run


def test_what_is_not_given_is_as_it_is_deployed(
    kfp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ("--store-secret", "keys", "--toleration", "a=b:NoSchedule", "--image-pull-secret", "r")
    made += ("--step", "probe.memory=2Gi", "--parallelism", "1", "--run-ttl", "60")
    assert sent(kfp, *SUNDAYS, *made) == 0
    capsys.readouterr()
    for words, drift in (
        ((), "none"),
        (made, "none"),
        (("--store-secret", "others"), "pipeline"),
        (("--toleration", "c"), "pipeline"),
        (("--step", "probe.memory=2Gi"), "none"),
        (("--step", "memory=2Gi"), "pipeline"),
        (("--parallelism", "0"), "pipeline"),
    ):
        assert sent(kfp, "--list", *words, image=None) == 0
        _, row = capsys.readouterr().out.splitlines()
        assert re.search(rf"  {drift}( \(\d+ fields?\))?$", row), (words, row)


def test_a_parameter_given_as_its_default_is_no_change(
    kfp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sent(kfp, *SUNDAYS, "--param", "tag=weekly") == 0
    for words in (("size=", "seeds=[0]", "tag=weekly"), ("tag=weekly", "gpus=1")):
        given = [part for word in words for part in ("--param", word)]
        assert sent(kfp, *SUNDAYS, *given) == 0
        assert sent(kfp, *SUNDAYS, "--diff", *given) == 0
    assert kfp.events == [("create enabled", 1)]
    capsys.readouterr()
    assert sent(kfp, *SUNDAYS, "--param", "size=") == 0
    assert "parameter tag: weekly → (the default)" in capsys.readouterr().out


def test_drift_of_what_is_deployed(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields that were changed in KFP, one after the other."""
    assert sent(kfp, *SUNDAYS, "--param", "seeds=[0]") == 0
    run = only(kfp)
    run["max_concurrency"] = "3"
    run["no_catchup"] = False
    run["runtime_config"]["parameters"] = {"seeds": [0, 1], "tag": "x"}
    run["trigger"] = {"cron_schedule": {"cron": "15 0 2 * * 1"}}
    (version,) = kfp.versions.values()
    spec = version["pipeline_spec"]["pipeline_spec"]
    container = spec["deploymentSpec"]["executors"]["exec-pretrain"]["container"]
    container["command"][-1] += "\nprint('changed')"
    spec["root"]["inputDefinitions"]["parameters"]["variant"]["defaultValue"] = "ssim"
    platform = version["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    shm = platform["deploymentSpec"]["executors"]["exec-probe"]["emptyDirMounts"][0]
    shm["sizeLimit"] = "64Mi"
    before = [dict(value) for value in kfp.recurring.values()]
    capsys.readouterr()
    assert sent(kfp, *SUNDAYS, "--param", "seeds=[0]", "--diff") == 1
    out, err = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["cron"] == "15 0 2 * * 1 → 0 2 * * 0"
    assert lines["parameter seeds"] == "[0, 1] → [0]"
    assert lines["parameter tag"] == "x → (the default)"
    assert lines["max concurrency"] == "3 → 1"
    assert lines["catch up"] == "yes → no"
    default = "root.inputDefinitions.parameters.variant.defaultValue"
    assert lines[default] == "ssim → mae"
    assert re.fullmatch(r"\(\d+ characters, \w{8}\) → .*", lines["code of pretrain"])
    assert any(field.endswith("exec-probe.emptyDirMounts") for field in lines)
    assert len(lines) == 8
    assert "differs in 8 fields; --diff has changed nothing" in err
    assert [dict(value) for value in kfp.recurring.values()] == before
    assert sent(kfp, "--list", image=None) == 0
    assert "pipeline (3 fields)" in capsys.readouterr().out
    # And it goes when it is scheduled again.
    assert sent(kfp, *SUNDAYS, "--param", "seeds=[0]") == 0
    assert sent(kfp, *SUNDAYS, "--param", "seeds=[0]", "--diff") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "percmae-train: as deployed"


def test_diff_with_nothing_deployed(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS, "--diff") == 1
    assert "schedule: (absent) → percmae-train" in capsys.readouterr().out
    assert not kfp.pipelines


def test_parameters_the_pipeline_no_longer_has(
    kfp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    only(kfp)["runtime_config"]["parameters"] = {"gone": 1, "seeds": "0"}
    capsys.readouterr()
    assert sent(kfp, "--list") == 0
    assert "parameter gone (unknown), parameter seeds (type)" in capsys.readouterr().out


def test_a_version_that_was_deleted(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    kfp.versions.clear()
    capsys.readouterr()
    assert sent(kfp, "--list") == 0
    assert "its version is gone" in capsys.readouterr().out
    assert sent(kfp, *SUNDAYS, "--diff") == 1
    assert "version: (gone) → the repo's" in capsys.readouterr().out
    assert sent(kfp, *SUNDAYS) == 0
    used = only(kfp)["pipeline_version_reference"]["pipeline_version_id"]
    assert used in kfp.versions


def test_a_schedule_that_cron_cannot_say(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are made in the UI: every so many seconds."""
    assert sent(kfp, *SUNDAYS) == 0
    only(kfp)["trigger"] = {"periodic_schedule": {"interval_second": "3600"}}
    capsys.readouterr()
    assert sent(kfp, "--list") == 0
    row = re.split(r" {2,}", capsys.readouterr().out.splitlines()[1])
    assert row[1:4] == ["every 3600 s", "-", "yes"]
    assert sent(kfp, *SUNDAYS) == 0
    assert "cron: every 3600 s → 0 2 * * 0" in capsys.readouterr().out
    assert only(kfp)["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 0"}}


# Deleting, refusing


def test_delete(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    kfp.runs["going"] = {"recurring_run_id": only(kfp)["recurring_run_id"]}
    assert sent(kfp, "--delete", "percmae-trian") == 2
    assert "no schedule 'percmae-trian'" in (err := capsys.readouterr().err)
    assert "did you mean 'percmae-train'" in err
    assert sent(kfp, "--delete", "percmae-train") == 0
    assert kfp.recurring == {}
    assert "going" in kfp.runs
    assert sent(kfp, "--delete", "percmae-train") == 2


def test_a_name_of_another_pipeline(kfp: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert sent(kfp, *SUNDAYS) == 0
    only(kfp)["pipeline_version_reference"]["pipeline_id"] = "another"
    assert sent(kfp, *SUNDAYS) == 2
    assert "belongs to another pipeline" in capsys.readouterr().err
    assert len(kfp.recurring) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--cron is missing"),
        (["--cron", "0 0 2 * * 0"], 'Meant is perhaps "0 2 * * 0"'),
        (["--cron", "0 25 * * 0"], "hour '25': 25 is not 0 to 23"),
        ([*SUNDAYS, "--param", "seed=1"], "did you mean 'seeds'"),
        ([*SUNDAYS, "--name", " "], "schedule name: is empty"),
        ([*SUNDAYS, "--toleration", "a:Never"], "toleration 'a:Never'"),
        ([*SUNDAYS, "--node-selector", "a"], "node selector 'a': give label=value"),
        ([*SUNDAYS, "--image-pull-policy", "never"], "image pull policy 'never'"),
        ([*SUNDAYS, "--cronjob", "--param", "tag=a"], "no --param"),
    ],
)
def test_refused_before_anything_is_sent(
    kfp: Server, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert sent(kfp, *words) == 2
    assert message in capsys.readouterr().err
    assert kfp.requests == []


def test_a_schedule_of_the_retrain_pipeline(
    kfp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands beside the other's, and its runs are told by which schedule they are started."""
    words = ["--pipeline", "retrain", "--param", "images=s3://b/i", "--param", "model=m"]
    assert sent(kfp, *SUNDAYS) == 0
    for cron in ("0 3 * * 0", "0 3 * * SUN"):
        assert sent(kfp, *words, "--cron", cron) == 0
    assert capsys.readouterr().out.splitlines()[2::2] == [
        "percmae-retrain: created",
        "percmae-retrain: unchanged",
    ]
    (run,) = (r for r in kfp.recurring.values() if r["display_name"] == "percmae-retrain")
    given = {"images": "s3://b/i", "model": "m", "schedule": "0 3 * * 0"}
    assert run["runtime_config"]["parameters"] == given
    assert (run["no_catchup"], run["max_concurrency"]) == (True, "1")
    assert sent(kfp, "--pipeline", "retrain", "--list", image=None) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("percmae-retrain  0 3 * * 0")
    assert line.endswith("none")
    assert sent(kfp, "--pipeline", "retrain", "--delete", "percmae-retrain", image=None) == 0
    assert [run["display_name"] for run in kfp.recurring.values()] == ["percmae-train"]
    assert sent(kfp, "--pipeline", "retrain", *SUNDAYS) == 2
    assert "percmae-retrain needs images and model" in capsys.readouterr().err
