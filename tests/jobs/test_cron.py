"""Schedules in words of cron, and the CronJob made of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kfp_rules import robfig

from jobs.validation import OLDEST, Invalid, validate
from percmae.errors import ConfigError
from percmae.jobs.cron import cron_job, launcher_settings
from percmae.jobs.crontab import from_kfp, parse_cron
from percmae.jobs.names import PULL_SECRETS_VARIABLE

RUN = ["run", "--launcher", "pytorchjob", "--store", "s3://percmae", "--dataset", "imagenet"]


@pytest.mark.parametrize(
    ("text", "standard"),
    [
        ("0 2 * * 0", "0 2 * * 0"),
        ("0 2 * * 7", "0 2 * * 0"),
        ("0 2 * * SUN", "0 2 * * 0"),
        ("0 2 ? * sun", "0 2 * * 0"),
        ("0 2 * * 5-7", "0 2 * * 0,5,6"),
        ("0 2 * * fri-SUN", "0 2 * * 0,5,6"),
        ("0 2 * * 0-7", "0 2 * * *"),
        ("*/15 9-17 * * MON-FRI", "*/15 9-17 * * 1-5"),
        ("5/20 22-23,0-4/2 1,15 JAN,jul *", "5-59/20 22-23,0-4/2 1,15 1,7 *"),
        ("0  0\t29 2 *", "0 0 29 2 *"),
        ("@weekly", "0 0 * * 0"),
        ("0 0 1-1 * *", "0 0 1 * *"),
    ],
)
def test_what_is_understood(text: str, standard: str) -> None:
    cron = parse_cron(text)
    assert cron.standard == standard
    assert cron.kfp == f"0 {standard}"
    # KFP's own parser takes it, and what it is there can be read back.
    robfig(cron.kfp)
    assert from_kfp(cron.kfp) == cron


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 fields; give five fields: minute hour"),
        ("0 2 * *", "has 4 fields"),
        ("0 0 2 * * 0", 'has six fields; .* perhaps "0 2 \\* \\* 0"'),
        ("0 0 2 * * 0 2026", "has 7 fields"),
        ("@reboot", "of such words @hourly, "),
        ("60 2 * * 0", "minute '60': 60 is not 0 to 59"),
        ("0 24 * * 0", "hour '24': 24 is not 0 to 23"),
        ("0 2 0 * *", "day of month '0': 0 is not 1 to 31"),
        ("0 2 * 13 *", "month '13': 13 is not 1 to 12"),
        ("0 2 * * 8", "day of week '8': 8 is not 0 to 7"),
        ("0 2 * JAM *", "month 'JAM': 'JAM' is not 1 to 12, or JAN to DEC"),
        ("0 2 L * *", "L, W and # are not known here"),
        ("0 2 * * 1#2", "L, W and # are not known here"),
        ("0 2 * * 5-1", "the range runs backwards"),
        ("*/0 * * * *", "a step is at least 1"),
        ("*/x * * * *", "is not a number, a range"),
        ("1,,2 * * * *", "is not a number, a range"),
        ("1- * * * *", "minute '1-': '' is not"),
        ("-1 * * * *", "minute '-1': '' is not"),
        ("? 2 * * *", "'\\?' is for the fields of days"),
        ("0 2 30 2 *", "no such date ever comes"),
        ("0 2 */2 * 1", "KFP reads it as both, Kubernetes as either"),
        ("0 2 1 * */2", "KFP reads it as both, Kubernetes as either"),
        ("0 2 ١ * *", "is not 1 to 31"),  # a digit to Python, but not to cron
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        parse_cron(text)
    assert str(raised.value).startswith(f"cron {text!r}: ")
    assert "\n" not in str(raised.value)


def test_five_fields_would_mean_something_else_to_kfp() -> None:
    """Why they are never handed on as they are."""
    robfig("0 2 * * *")  # at minute 2 of every hour
    with pytest.raises(ValueError, match="bounds of weekday"):
        robfig("0 0 2 * * 7")


@pytest.mark.parametrize(
    ("text", "moment", "expected"),
    [
        ("0 2 * * 0", "2026-01-02 03:04", "2026-01-04 02:00"),
        ("0 2 * * 0", "2026-01-04 01:59", "2026-01-04 02:00"),
        ("0 2 * * 0", "2026-01-04 02:00", "2026-01-11 02:00"),
        ("*/15 * * * *", "2026-12-31 23:50", "2027-01-01 00:00"),
        ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
        ("0 2 1 * 1", "2026-01-02 00:00", "2026-01-05 02:00"),  # the 1st, and Mondays
        ("0 2 1 * 1", "2026-01-27 00:00", "2026-02-01 02:00"),
        ("0 2 31 * *", "2026-01-31 02:00", "2026-03-31 02:00"),
    ],
)
def test_the_next_time(text: str, moment: str, expected: str) -> None:
    found = parse_cron(text).after(datetime.fromisoformat(moment).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_equal_when_they_mean_the_same() -> None:
    assert parse_cron("0 2 * * 1-3") == parse_cron("0 2 * * MON,2,3")
    assert hash(parse_cron("0 2 * * 1-3")) == hash(parse_cron("0 2 * * MON,2,3"))
    assert parse_cron("0 2 * * 1-3") != parse_cron("0 2 * * 1-4")
    # Every day in the one field leaves it to the other; a star leaves nothing to decide.
    assert parse_cron("0 2 1-31 * 1") != parse_cron("0 2 * * 1")
    assert from_kfp("15 0 2 * * 1") is None
    assert from_kfp("@every 1h") is None


# The CronJob


def made(**options: Any) -> dict[str, Any]:
    settings = launcher_settings(options.pop("job", ()))
    return cron_job("weekly", parse_cron("0 2 * * SUN"), RUN, settings, **options)


def test_the_cronjob_is_valid() -> None:
    rich = ("image_pull_secrets=[one]", "image_pull_policy=Always", "priority_class=low")
    for options in ({}, {"time_zone": "Europe/Berlin", "job": rich}):
        validate(made(**options))
        validate(made(**options), OLDEST)


def test_secrets_for_images_are_for_the_jobs_that_it_launches_too() -> None:
    cron = made(job=("image_pull_secrets=[one, two]",))
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    given = {"name": PULL_SECRETS_VARIABLE, "value": "one,two"}
    assert given in pod["containers"][0]["env"]


def test_the_validation_would_notice() -> None:
    wrong = made()
    wrong["spec"]["concurrencyPolicies"] = "Forbid"
    with pytest.raises(Invalid, match="concurrencyPolicies"):
        validate(wrong)


def test_what_the_cronjob_says() -> None:
    spec = made()["spec"]
    job = spec.pop("jobTemplate")["spec"]
    assert spec == {
        "schedule": "0 2 * * 0",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
    }
    # The CronJob keeps the last jobs; they must not vanish before.
    assert "ttlSecondsAfterFinished" not in job
    assert job["activeDeadlineSeconds"] > 0
    pod = job["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (
        "percmae-launcher",
        True,
    )
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["command"] == ["tini", "--", "percmae", *RUN]
    assert container["image"].startswith("percmae-pipeline:")
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # All that is written goes where it can be.
    written = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    assert (written["PERCMAE_HOME"], written["HOME"]) == ("/tmp/percmae", "/tmp")
    assert container["workingDir"] == "/tmp"


def test_labels_say_the_name() -> None:
    whole = made(job=("labels={team: a}",))
    labels = whole["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "weekly"
    assert labels["team"] == "a"
    template = whole["spec"]["jobTemplate"]
    assert template["metadata"]["labels"] == labels
    assert template["spec"]["template"]["metadata"]["labels"] == labels
    assert whole["metadata"]["namespace"] == "percmae"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Weekly"}, "schedule 'Weekly': lower-case letters"),
        ({"name": "w" * 53}, "at most 52"),
        ({"name": "weekly-"}, "schedule 'weekly-'"),
        ({"time_zone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"time_zone": "Local"}, "Kubernetes refuses it"),
        ({"time_zone": "../etc/passwd"}, "unknown time zone"),
    ],
)
def test_what_kubernetes_would_refuse(change: dict[str, str], message: str) -> None:
    name = change.pop("name", "weekly")
    with pytest.raises(ConfigError, match=message):
        cron_job(name, parse_cron("0 2 * * 0"), RUN, launcher_settings(), **change)
