"""A training scraped as Prometheus does, and the alerts upon what it serves."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from faulty_proxy import FaultyProxy
from prometheus_client.parser import text_string_to_metric_families
from s3_server import S3

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.engine.pretrain import pretrain
from percmae.engine.teller import metrics_port
from percmae.errors import UserError
from percmae.storage import outage, transport

Make = Callable[..., Config]
ALERTS = Path(__file__).parents[2] / "k8s/components/monitoring/alerts.yaml"
QUICK = ("optim.max_steps=4", "tracking.images=0", "tracking.rankme_samples=0")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


class Scraped:
    """What was served at one time: values by name, and labels in braces where there are any."""

    def __init__(self, port: int) -> None:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def __getitem__(self, name: str) -> float:
        (value,) = (s.value for s in self.samples if s.name == name)
        return value

    def labelled(self, name: str, label: str) -> dict[str, float]:
        return {s.labels[label]: s.value for s in self.samples if s.name == name}


def scraped_when(port: int, holds: Callable[[Scraped], bool], seconds: float = 60) -> Scraped:
    until = time.monotonic() + seconds
    while True:
        try:
            scraped = Scraped(port)
        except OSError:  # it does not serve yet
            scraped = None
        if scraped is not None and holds(scraped):
            return scraped
        assert time.monotonic() < until, scraped and scraped.samples
        time.sleep(0.05)


def test_a_training_is_scraped_while_its_store_fails(
    tiny: Make,
    tiny_dataset: Dataset,
    s3: S3,
    proxy: FaultyProxy,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outage, "_FIRST", 0.2)
    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("PERCMAE_STARTS", "3")
    found: list[Scraped] = []
    failing = threading.Event()

    def look() -> None:
        with proxy.lasting("503", "checkpoints/step"):
            failing.set()
            done = lambda now: now["percmae_step"] == 4 and now["percmae_store_waiting"] == 1  # noqa: E731
            found.append(scraped_when(port, done))

    looking = threading.Thread(target=look)
    looking.start()
    assert failing.wait(10)
    config = tiny(*QUICK, f"tracking.metrics_port={port}", variant="ssim")
    run = pretrain(config, tiny_dataset.uri, s3.uri("runs")).run
    looking.join()
    (now,) = found
    assert now.labelled("percmae_run_info", "uri") == {run.uri: 1}
    assert now.labelled("percmae_run_info", "stage") == {"pretrain": 1}
    assert now["percmae_planned_steps"] == 4
    terms = now.labelled("percmae_loss", "term")
    assert terms["loss"] == pytest.approx(run.metrics["train/loss"])
    assert terms.keys() == {"loss", "l1", "ssim"}
    assert now.labelled("percmae_validation", "figure")["loss"] == run.metrics["val/loss"]
    assert now["percmae_images_per_second"] == run.metrics["train/images_per_second"]
    assert now["percmae_loader_wait_ratio"] == run.metrics["train/loader_wait"]
    assert now["percmae_learning_rate"] == run.metrics["train/lr"]
    assert now["percmae_store_retries_total"] >= 1
    assert now["percmae_restarts"] == 2
    for age in ("step", "checkpoint"):
        assert 0 < now[f"percmae_{age}_age_seconds"] < 60
    assert 0 < now["percmae_checkpoint_interval_seconds"] < 60
    with pytest.raises(OSError, match="refused"):
        Scraped(port)
    named = set(re.findall(r"percmae_\w+", ALERTS.read_text()))
    assert len(named) >= 5
    assert named <= {sample.name for sample in now.samples}


def test_the_alerts_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH")
    groups = tmp_path / "alerts.yaml"
    groups.write_text(yaml.safe_dump(yaml.safe_load(ALERTS.read_text())["spec"]))
    done = subprocess.run([promtool, "check", "rules", str(groups)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 rules found" in done.stdout


def test_a_port_that_is_taken_is_warned_of(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        taken = other.getsockname()[1]
        config = tiny(*QUICK, f"tracking.metrics_port={taken}")
        assert pretrain(config, tiny_dataset.uri, str(tmp_path)).run.complete
    warnings = [line for line in capsys.readouterr().err.splitlines() if " WARNING" in line]
    assert len([line for line in warnings if f"at port {taken}: Address already" in line]) == 1


def test_which_process_serves(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    assert metrics_port(config) is None, "nobody has asked for it"
    monkeypatch.setenv("PERCMAE_METRICS_PORT", "9400")
    assert metrics_port(config) == 9400
    assert metrics_port(tiny("tracking.metrics_port=9401")) == 9401
    assert metrics_port(tiny("tracking.metrics_port=0")) is None
    for rank, local, port in ((0, 0, 9400), (1, 1, None), (2, 0, 9400), (3, 1, None)):
        place = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": 2}
        for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
            monkeypatch.setenv(name, str(value))
        assert metrics_port(config) == port


@pytest.mark.parametrize("text", ["http", "-1", "65536", "9400/tcp"])
def test_an_environment_that_names_no_port(
    text: str, tiny: Make, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCMAE_METRICS_PORT", text)
    with pytest.raises(UserError, match=r"^PERCMAE_METRICS_PORT must be a port from 0 to 65535"):
        pretrain(replace(tiny(), seed=1), tiny_dataset.uri, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
