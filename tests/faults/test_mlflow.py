"""What an MLflow server is told of runs, whatever happens to them and to it."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_server
import pytest
from faulty_proxy import FaultyProxy
from fixtures_data import TINY

from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.config.load import what_counts
from percmae.data.shards import Dataset
from percmae.engine import mlflow as sending
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import probe
from percmae.engine.pretrain import PretrainLearner, pretrain
from percmae.errors import Interrupted, PercmaeError
from percmae.runs.downstream import downstream_config
from percmae.runs.history import read_history
from percmae.runs.mlflow import client
from percmae.runs.record import Run

if TYPE_CHECKING:
    from s3_server import S3

# One server for all.
pytestmark = pytest.mark.xdist_group("mlflow")

STEPS = 8
SMALL = (
    *TINY,
    *("tracking.images=0", "tracking.rankme_samples=0", f"optim.max_steps={STEPS}"),
    *("checkpoint.every_steps=3", "trainer.val_samples=16"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture
def door(server: str) -> Iterator[FaultyProxy]:
    """What misbehaves before the server."""
    with FaultyProxy(server) as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(sending, "_IN_A_HURRY", 30.0)


def at_step(patch: pytest.MonkeyPatch, number: int, then: Callable[[], object]) -> None:
    """Have something happen, once, in the midst of the step of this number (from 1)."""
    backward, left = PretrainLearner.backward, [then]

    def watched(self: PretrainLearner, batch: Any, micro: Any) -> Any:
        if micro.step == number - 1 and left:
            left.pop()()
        return backward(self, batch, micro)

    patch.setattr(PretrainLearner, "backward", watched)


def there(server: str, run: Run) -> Any:
    """The one run of MLflow's that is this one."""
    asked = client(server)
    experiments = [each.experiment_id for each in asked.search_experiments()]
    (found,) = asked.search_runs(experiments, f"tags.\"percmae.uri\" = '{run.uri}'")
    return found


def told(server: str, run: Run) -> dict[str, dict[int, float]]:
    """Every figure by step; none may be there twice."""
    asked, found = client(server), there(server, run)
    figures: dict[str, dict[int, float]] = {}
    for name in found.data.metrics:
        history = asked.get_metric_history(found.info.run_id, name)
        figures[name] = {each.step: each.value for each in history}
        assert len(figures[name]) == len(history), name
    return figures


def logged(run: Run) -> dict[str, dict[int, float]]:
    """The same of the run's own history."""
    figures: dict[str, dict[int, float]] = {}
    for row in read_history(run.path):
        for name, value in row.figures.items():
            known = math.nan if value is None else value
            figures.setdefault(f"{row.split}/{name}", {})[row.step] = known
    return figures


# What a clock says of steps that were taken twice.
CLOCK = ("train/images_per_second", "train/loader_wait")


def without_clock(figures: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    return {name: values for name, values in figures.items() if name not in CLOCK}


def test_settings_figures_and_addresses(
    server: str, tiny_dataset: Dataset, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    to, data = s3.uri("runs"), tiny_dataset.uri
    settings = [*SMALL, f"tracking.mlflow={server}", "tracking.mlflow_experiment=Mine, all 3"]
    arguments = ["pretrain", "--data", data, "--to", to, "--recipe", "demo", "--tag", "told"]
    capsys.readouterr()
    assert main([*arguments, *settings]) == 0
    assert capsys.readouterr().out == f"{to}/told_mae\n", "nothing of MLflow's on stdout"
    run = Run.open(f"{to}/told_mae")
    found = there(server, run)
    assert client(server).get_experiment(found.info.experiment_id).name == "Mine, all 3"
    assert (found.info.run_name, found.info.status) == ("told_mae", "FINISHED")
    assert found.data.params == {k: json.dumps(v) for k, v in what_counts(run.config).items()}
    tags = {"key": run.key, "data": run.record.data.uri, "checkpoints": f"{run.uri}/checkpoints"}
    assert {f"percmae.{k}": v for k, v in tags.items()}.items() <= found.data.tags.items()
    figures = told(server, run)
    assert figures == logged(run)
    assert set(figures["train/loss"]) == set(range(1, STEPS + 1))
    assert set(figures["val/loss"]) >= {STEPS}


def test_a_run_that_is_gone_on_with_stays_one_run(
    server: str, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        "mae", "demo", overrides=[*SMALL, f"tracking.mlflow={server}"], tag="gone-on"
    )

    def fail() -> None:
        raise PercmaeError("a fault")

    # What fails has told of steps 4 and 5 and goes on from 3; what is told to stop has saved.
    for number, happens, kind, status in (
        (6, fail, PercmaeError, "FAILED"),
        (5, lambda: signal.raise_signal(signal.SIGTERM), Interrupted, "KILLED"),
    ):
        with monkeypatch.context() as patch:
            at_step(patch, number, happens)
            with pytest.raises(kind):
                pretrain(config, tiny_dataset.uri, str(tmp_path))
        run = Run.open(str(tmp_path / "gone-on_mae"))
        assert there(server, run).info.status == status
        assert set(told(server, run)["train/loss"]) == set(range(1, 6))
    run = pretrain(config, tiny_dataset.uri, str(tmp_path)).run
    assert there(server, run).info.status == "FINISHED"
    assert without_clock(told(server, run)) == without_clock(logged(run))
    longer = load_config(
        "mae",
        "demo",
        overrides=[*SMALL, f"tracking.mlflow={server}", f"optim.max_steps={STEPS + 1}"],
        tag="gone-on",
    )
    run = pretrain(longer, tiny_dataset.uri, str(tmp_path)).run
    asked = client(server)
    experiment = asked.get_experiment_by_name("percmae").experiment_id
    both = asked.search_runs([experiment], f"tags.\"percmae.uri\" = '{run.uri}'")
    assert {each.data.params["optim.max_steps"] for each in both} == {"8", "9"}


def test_training_goes_on_while_mlflow_is_away(
    server: str,
    door: FaultyProxy,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [*SMALL, f"tracking.mlflow={door.endpoint}"]
    config = load_config("mae", "demo", overrides=settings, tag="away")
    away = door.lasting("refuse")
    at_step(monkeypatch, STEPS - 1, lambda: away.__exit__(None, None, None))
    away.__enter__()
    run = pretrain(config, tiny_dataset.uri, str(tmp_path)).run
    assert told(server, run) == logged(run)
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len([line for line in said if "takes no figures (" in line]) == 1
    assert len([line for line in said if "takes figures again" in line]) == 1
    assert len(said) == 2


@pytest.mark.parametrize("fault", ["refuse", "500", "page", "lose"])
def test_what_was_not_told_is_told_by_the_same_command(
    server: str,
    door: FaultyProxy,
    fault: str,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sending, "_AT_THE_END", 1.0)
    settings = [*SMALL, f"tracking.mlflow={door.endpoint}"]
    config = load_config("mae", "demo", overrides=settings, tag=f"late-{fault}")
    with door.lasting(fault, "POST" if fault == "lose" else ""):
        run = pretrain(config, tiny_dataset.uri, str(tmp_path)).run
    assert run.complete
    assert "does not have all of" in capsys.readouterr().err
    assert pretrain(config, tiny_dataset.uri, str(tmp_path)).reused
    assert there(server, run).info.status == "FINISHED"
    assert told(server, run) == logged(run)
    before = len(door.requests)
    assert pretrain(config, tiny_dataset.uri, str(tmp_path)).reused
    assert not [line for line in door.requests[before:] if "log-metric" in line]


def test_evaluations_and_versions_of_models(
    server: str,
    door: FaultyProxy,
    tiny_dataset: Dataset,
    s3: S3,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to, data = s3.uri("runs"), tiny_dataset.uri
    address = f"tracking.mlflow={door.endpoint}"
    parent = pretrain(load_config("mae", "demo", overrides=[*SMALL], tag="m"), data, to).run
    short = ["data.workers=0", "trainer.threads=1", "optim.epochs=1", "data.batch_size=16"]
    config = downstream_config(parent, "probe", overrides=[*short, address])
    run = probe(config, parent, data, to).run
    evaluation = evaluate(run.uri, data).evaluation.model_dump()
    evaluate(run.uri, data)
    figures = told(server, run)
    for name in ("top1", "top5", "loss", "ece"):
        assert figures[f"test/{name}"] == {run.record.step: evaluation[name]}
    model = f"{s3.uri('models')}/digits"
    asked = client(server)
    with door.lasting("500"):
        assert main(["models", "add", model, "--run", run.uri]) == 0
    assert "does not know of version 1 what we do" in capsys.readouterr().err
    for _ in range(2):
        assert main(["models", "add", model, "--run", run.uri]) == 0
        (version,) = asked.search_model_versions("name = 'digits'")
    assert version.source.startswith(f"{model}/versions/")
    assert version.run_id == there(server, run).info.run_id
    assert version.tags["percmae.version"] == "1"
    capsys.readouterr()
    for _ in range(2):
        assert main(["models", "promote", f"{model}@1"]) == 0
    assert "MLflow" not in capsys.readouterr().err
    champion = asked.get_model_version_by_alias("digits", "champion")
    assert champion.version == version.version
    # Of a run that is told to nobody nothing is told.
    evaluate(parent.uri, data)
    assert main(["models", "add", model, "--run", parent.uri]) == 0
    assert len(asked.search_model_versions("name = 'digits'")) == 1
