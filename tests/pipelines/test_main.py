"""``python -m pipelines`` itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from pipelines.__main__ import main

IMAGE = "registry.example/percmae-pipeline@sha256:" + "1" * 64
SUNDAYS = ("--cron", "0 2 * * 0")


def test_help_is_quick() -> None:
    """It loads nothing heavy."""
    code = (
        "import sys; from pipelines.__main__ import _parser; _parser('x').format_help(); "
        "heavy = {'kfp', 'torch', 'kubernetes', 'minio', 'pydantic', 'numpy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_cronjob_for_clusters_without_kfp(capsys: pytest.CaptureFixture[str]) -> None:
    run = "run --launcher pytorchjob --store s3://b --job 'env=[]'"
    words = ["--cronjob", *SUNDAYS, "--name", "weekly", "--run", run, "--image", IMAGE]
    assert main(["schedule", *words, "--job", "memory=2Gi", "--time-zone", "Europe/Berlin"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert (made["kind"], made["metadata"]["name"]) == ("CronJob", "weekly")
    assert (made["spec"]["schedule"], made["spec"]["timeZone"]) == ("0 2 * * 0", "Europe/Berlin")
    pod = made["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:3] == ["tini", "--", "percmae"]
    assert container["command"][3:] == run.replace("'", "").split()
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    said = "--cronjob takes --run, the words of `percmae run`, and no --param or --step"
    assert main(["schedule", *words, "--step", "memory=2Gi"]) == 2
    assert said in capsys.readouterr().err
