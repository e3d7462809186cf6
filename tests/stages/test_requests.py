"""What is asked of the store: a run's record and a dataset's listing once a step, not thrice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import urllib3
from fixtures_data import TINY
from s3_server import S3

from percmae.cli import verbs
from percmae.config import load_config
from percmae.data.sample import SampleArchives
from percmae.engine.pretrain import pretrain
from percmae.ingest import ingest
from percmae.jobs.settings import JobSettings
from percmae.jobs.work import Work
from percmae.stages import steps
from percmae.stages.placement import Placement
from percmae.storage import StorePath

SHORT = ("optim.epochs=1", "data.workers=0", "data.batch_size=16", "trainer.threads=1")
OVERRIDES = [f"probe.{override}" for override in SHORT]
WAYS = (Placement(), Placement("pytorchjob"))


class Stored(NamedTuple):
    """A dataset's manifest and a pretraining run, both in S3."""

    data: str
    run: str


@pytest.fixture(scope="module")
def trained(s3: S3, tiny_archives: SampleArchives) -> Stored:
    a = tiny_archives
    data = ingest(**a.uris(), to=s3.uri("data")).dataset.uri
    config = load_config("mae", "demo", overrides=[*TINY, "optim.epochs=1"], tag="t")
    return Stored(data, pretrain(config, data, s3.uri("trained")).uri)


@pytest.fixture
def stored(s3: S3, trained: Stored) -> Stored:
    """The same with the run alone in a folder of its own."""
    run = StorePath(s3.uri("runs")) / "t_mae"
    for entry in StorePath(trained.run).iter():
        (run / entry.name).write_bytes(entry.path.read_bytes())
    return Stored(trained.data, run.uri)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Requests of this process in the block: ``GET s3://bucket/key``, ``LIST s3://bucket/prefix``."""
    seen: Counter[str] = Counter()
    send = urllib3.PoolManager.urlopen

    def count(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        address = urlsplit(url)
        path, query = unquote(address.path).strip("/"), parse_qs(address.query)
        if "list-type" in query:
            seen[f"LIST s3://{path}/{query['prefix'][0]}".rstrip("/")] += 1
        else:
            seen[f"{method} s3://{path}"] += 1
        return send(self, method, url, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib3.PoolManager, "urlopen", count)
        yield seen


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """Jobs that were launched; each is carried out by a process here, as its pod would."""
    launched: list[Work] = []

    def carry_out(work: Work, settings: JobSettings, pipeline_run: str) -> None:
        launched.append(work)
        subprocess.run([sys.executable, "-m", "percmae", *work.arguments], check=True)

    monkeypatch.setattr("percmae.stages.launch.launch", carry_out)
    return launched


def artifact(folder: Path, uri: str) -> Any:
    """One that a step reads or writes, with whatever it logs."""
    folder.mkdir(exist_ok=True)
    logged: dict[str, Any] = {}
    return SimpleNamespace(
        path=str(folder / "artifact.json"),
        metadata={"uri": uri},
        logged=logged,
        log_metric=logged.__setitem__,
        log_confusion_matrix=logged.__setitem__,
    )


def opened_once(seen: Counter[str], stored: Stored) -> None:
    folder = stored.data.rpartition("/")[0]
    expected = {
        f"GET {stored.run}/run.json": 1,
        f"GET {stored.data}": 1,
        f"LIST {folder}/train": 1,
        f"LIST {folder}/test": 1,
    }
    assert {request: seen[request] for request in expected} == expected
    assert seen[f"HEAD {stored.run}/run.json"] == 0


@pytest.mark.parametrize("placement", WAYS, ids=lambda placement: placement.launcher)
def test_a_probe_in_a_pipeline(
    stored: Stored, jobs: list[Work], tmp_path: Path, placement: Placement
) -> None:
    run, data, model = (artifact(tmp_path / name, getattr(stored, name, "")) for name in
                        ("run", "data", "model"))  # fmt: skip
    for reused in (False, True):
        with counted() as seen:
            steps.probe(run, data, OVERRIDES, model, model, placement)
        opened_once(seen, stored)
        assert model.metadata["reused"] is reused
        assert model.metadata["uri"] == f"{stored.run}_probe"
        # The new run is read where a job has written it, or where it is reused.
        by_job = placement.launcher != "local"
        assert seen[f"GET {stored.run}_probe/run.json"] == (1 if reused or by_job else 0)
    assert len(jobs) == (1 if by_job else 0)
    assert model.logged["val/top1"] > 0


@pytest.mark.parametrize("placement", WAYS, ids=lambda placement: placement.launcher)
def test_an_evaluation_in_a_pipeline(
    stored: Stored, jobs: list[Work], tmp_path: Path, placement: Placement
) -> None:
    run, data, figures = (artifact(tmp_path / name, getattr(stored, name, "")) for name in
                          ("run", "data", "figures"))  # fmt: skip
    for reused in (False, True):
        with counted() as seen:
            steps.reconstruct(run, data, figures, figures, placement)
        opened_once(seen, stored)
        assert figures.metadata["reused"] is reused
        by_job = placement.launcher != "local"
        assert seen[f"GET {stored.run}/evaluation.json"] == (1 if reused or by_job else 0)
    assert len(jobs) == (1 if by_job else 0)
    assert figures.logged["psnr"] > 5
    page = Path(figures.path).read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page
    assert f"PSNR <strong>{figures.logged['psnr']:.1f} dB" in page


def test_each_evaluation_is_for_its_kind_of_run(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data, figures = (artifact(tmp_path / name, getattr(stored, name, "")) for name in
                          ("run", "data", "figures"))  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        steps.evaluate(run, data, figures, figures, Placement())
    assert ended.value.code == 2
    assert "is no classifier" in capsys.readouterr().err


def test_a_probe_from_the_command_line(stored: Stored) -> None:
    to = stored.run.rpartition("/")[0]
    arguments = ["probe", "--run", stored.run, "--data", stored.data, "--to", to, *SHORT]
    with counted() as seen:
        assert verbs.main(arguments) == 0
    opened_once(seen, stored)
    with counted() as seen:
        assert verbs.main(["submit", "--print", *arguments]) == 0
    assert seen == {f"GET {stored.run}/run.json": 1}


def test_an_evaluation_from_the_command_line(stored: Stored) -> None:
    for _ in ("new", "reused"):
        with counted() as seen:
            assert verbs.main(["evaluate", "--run", stored.run, "--data", stored.data]) == 0
        opened_once(seen, stored)
