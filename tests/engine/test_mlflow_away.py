"""MLflow where there is none (tests/faults/test_mlflow.py has a server)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from percmae.config import Config, digest
from percmae.data.shards import Dataset
from percmae.engine import mlflow
from percmae.engine.pretrain import pretrain
from percmae.errors import ConfigError, UserError
from percmae.runs.mlflow import tell

Make = Callable[..., Config]
QUICK = ("optim.max_steps=3", "tracking.images=0", "tracking.rankme_samples=0")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mlflow.example.com", r"the address of a server, such as https://"),
        ("sqlite:///mlflow.db", r"the address of a server"),
        ("http://", r"the address of a server"),
        ("http://[::1", r"the address of a server"),
        ("https://me:secret@mlflow.example.com", r"^tracking\.mlflow: an address without user"),
    ],
)
def test_what_is_no_address(tiny: Make, address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        tiny(f"tracking.mlflow={address}")
    assert "secret" not in str(error.value)


def test_nothing_of_a_run_depends_on_it(tiny: Make) -> None:
    told = tiny("tracking.mlflow=http://localhost:5000", "tracking.mlflow_experiment=mine")
    assert digest(told) == digest(tiny())


def test_the_client_is_needed_where_it_is_asked_for_alone(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs MLflow's client: pip install 'percmae\[mlflow\]'"):
        pretrain(
            tiny(*QUICK, "tracking.mlflow=http://localhost:5000"), tiny_dataset.uri, str(tmp_path)
        )
    assert list(tmp_path.iterdir()) == []
    run = pretrain(tiny(*QUICK), tiny_dataset.uri, str(tmp_path)).run
    assert run.complete
    tell(run, run.config)


def test_a_server_that_is_never_there_is_told_of_and_no_more(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mlflow, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(mlflow, "_AT_THE_END", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    run = pretrain(tiny(*QUICK, f"tracking.mlflow={nobody}"), tiny_dataset.uri, str(tmp_path)).run
    assert run.complete
    tell(run, run.config)
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    words = ("takes no figures", "does not have all of", "does not have all of")
    assert [word in line for word, line in zip(words, said, strict=True)] == [True] * 3
    assert all(" WARNING" in line and nobody in line for line in said)
