"""Random settings of every field: a run of its steps, or a refusal in one line and nothing written.

More draws: ``PERCMAE_TEST_DRAWS=2000 pytest tests/engine/test_random_settings.py``.
"""

from __future__ import annotations

import ast
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from percmae.cli.verbs import main
from percmae.config.load import VARIANTS, docs, stages_of
from percmae.data.sample import make_sample_archives
from percmae.data.shards import Dataset
from percmae.ingest import ingest
from percmae.vision import torchvision

from .conftest import tiny_overrides
from .forked import percmae

DRAWS = int(os.environ.get("PERCMAE_TEST_DRAWS", "60"))
STAGES = ("pretrain", "pretrain", "probe", "finetune")
STEPS = 2
HUGE, NAN, INF = 10**12, float("nan"), float("inf")
NOWHERE = "/does/not/exist"

# What numbers and names are drawn from: usual values, the ends of their ranges, and beyond.
VALUES: dict[str, list[Any]] = {
    "tag": ["a", "x.y-z", "a/b", None],
    "name": ["n", None],
    "seed": [0, 1, 2**31, 2**63 - 1, 2**63, 10**30],
    "data.image_size": [8, 16, 24, 32, 33, 48],
    "data.label_fraction": [1, 0.5, 0.02, 1e-9, 0, 2],
    "data.batch_size": [1, 2, 3, 5, 7, 8, 16, 40, 100, HUGE],
    "data.workers": [0, 1],
    "data.timeout": [600, 1e9, INF],
    "data.formats": [["JPEG", "PNG"], ["JPEG"], ["EPS"], []],
    "data.augment.crop_scale": [[0.2, 1], [1, 1], [1e-4, 1e-4], [1e-9, 1], [0.5, 0.2], [0.1, 2]],
    "data.augment.crop_aspect": [[1, 1], [0.01, 100], [1e-300, 1e300], [2, 1], [0, 1]],
    "data.augment.flip": [0, 0.5, 1],
    "data.augment.color_jitter": [0, 0.4, 1, 1e6],
    "data.augment.rand_augment": [
        *(None, "rand", "rand-m9-mstd0.5-inc1", "rand-m30-n5-mstd101-mmax30-inc1"),
        *("original-mstd0.5", "3a", "augmix-m5-w4-d2"),
        *("rand-n10-tweights", "rand-n20-tweights", "rand-m-1", "rand-x3", "randy", "foo", ""),
    ],
    "data.augment.erasing": [0, 0.25, 1],
    "data.augment.eval_crop": [0.1, 0.5, 0.875, 1, 1e-9],
    "data.augment.mean": [None, [0, 0, 0], [0.5, 0.5, 0.5], [-5, 3, 2], [1e30, 0, 0], [NAN] * 3],
    "data.augment.std": [
        None,
        [1, 1, 1],
        [0.2, 0.3, 0.4],
        [1e-6, 1, 1],
        [1e-320, 1, 1],
        [INF, 1, 1],
    ],
    "model.patch_size": [4, 8, 16, 64, 7],
    "model.encoder.width": [4, 8, 24, 5, 20],
    "model.encoder.depth": [1, 2, 3, 5],
    "model.encoder.heads": [1, 2, 3, 24],
    "model.encoder.mlp_ratio": [4, 0.5, 2.3, 1e-9, 1e12, INF],
    "model.decoder.width": [4, 8, 16, 32, 5],
    "model.decoder.depth": [1, 2, 3, 4, 6],
    "model.decoder.heads": [1, 2, 4, 16],
    "model.decoder.mlp_ratio": [4, 0.5, 2.3, 1e-9, 1e12],
    "model.mask_ratio": [0.75, 0.5, 1e-9, 0.9, 0.99, 0.9999999],
    "model.init_from": [None, NOWHERE, ""],
    "loss.l1": [0, 1, 1e30],
    "loss.perceptual": [0, 0.05],
    "loss.style": [0, 40],
    "loss.gan": [0, 0.7],
    "loss.ssim": [0, 0.85, 1],
    "loss.ssim_levels": [1, 4, 5, 6, 2000],
    "perceptual.weights": [None, NOWHERE],
    "perceptual.sha256": [None, "0" * 64],
    "adversarial.refresh_epochs": [1, 5],
    "adversarial.gradient_penalty": [0, 10],
    "adversarial.drift": [0, 0.001],
    "discriminator.depth": [1, 2, 3, 100],
    "discriminator.width": [8, 16, 64, 12],
    "discriminator.group": [1, 3, 4, 10**9],
    "discriminator.lr": [None, 1e-4],
    "stylegan.r1_gamma": [0, 10],
    "stylegan.r1_interval": [1, 2, 16],
    "stylegan.path_length": [0, 2],
    "stylegan.path_interval": [1, 4],
    "stylegan.path_decay": [0.01, 1],
    "stylegan.latent": [0, 1],
    "stylegan.ada_target": [-1, 0.6, 1],
    "stylegan.ada_interval": [1, 4],
    "stylegan.ada_kimg": [1e-9, 0.01, 500, INF],
    "optim.lr": [1e-30, 1e-4, 1e30, INF],
    "optim.scale_batch": [None, 1, 256, HUGE],
    "optim.total_batch": [None, 1, 16, 32, 48, HUGE],
    "optim.accumulate": [1, 2, 3, HUGE],
    "optim.betas": [[0.9, 0.95], [0, 0], [0.99, 0.1], [0.9, 1], [1, 0.5], [0.9, -1]],
    "optim.eps": [1e-300, 1e-8, 1, 1e30],
    "optim.momentum": [0, 0.9, 1],
    "optim.weight_decay": [0, 0.05, 1e30],
    "optim.layer_decay": [1, 0.65, 1e-300],
    "optim.warmup_epochs": [0, 0.5, 40, 1e300, INF],
    "optim.min_lr": [0, 1e-6, 100],
    "optim.step_epochs": [1, 30],
    "optim.step_factor": [0.9, 1, 1e-9],
    "optim.epochs": [2, 800, HUGE, 10**30],
    "optim.clip_grad": [None, 1e-30, 1, 1e30],
    "classifier.classes": [None, 2, 4, 7],
    "classifier.drop_path": [0, 0.1, 1],
    "classifier.dropout": [0, 0.5, 1],
    "classifier.label_smoothing": [0, 0.1, 1],
    "classifier.mixup": [0, 0.8, 1e-300, 1e9],
    "classifier.cutmix": [0, 1, 1e-9, 1e9],
    "trainer.devices": [-1, 0, 5],
    "trainer.num_nodes": [1, 2],
    "trainer.threads": [None, 1],
    "trainer.val_interval": [1e-9, 0.1, 1, 1e308, INF],
    "trainer.val_samples": [None, 1, 5, HUGE],
    "trainer.log_interval": [1, 50, HUGE],
    "trainer.hang_minutes": [15, 29.9, 0, 30, INF],
    "trainer.store_outage": [None, 0, 30, 43_200, 1e300, INF],
    "checkpoint.grace": [1, 60, 1e300, 0, INF],
    "checkpoint.every_steps": [None, 1, HUGE],
    "checkpoint.every_minutes": [None, 1e-9, 1e300],
    "checkpoint.keep_last": [1, 5],
    "checkpoint.keep_best": [0, 1, 3],
    "checkpoint.milestone_epochs": [None, 1, HUGE],
    "data.cache_bytes": [1, HUGE],
    "tracking.images": [0, 1, 8, HUGE],
    "tracking.images_every": [1e-9, 1, 1e308],
    "tracking.knn_samples": [None, 0, 1, 10, HUGE],
    "tracking.knn_neighbours": [1, 20, HUGE],
    "tracking.gpu_price": [0, 2.5, 1e300, -1, INF],
    "tracking.rankme_samples": [0, 1, 10, HUGE],
}
NOT_DRAWN = {
    "stage": "an argument",
    "variant": "an argument",
    "recipe": "an argument",
    "optim.max_steps": "bounds each run",
    "checkpoint.spool": "without effect on a run in a folder of this machine",
    "tracking.metrics_port": "without effect on a run",
    "tracking.mlflow": "tests/engine/test_mlflow_away.py",
    "tracking.mlflow_experiment": "without effect on a run",
    "data.cache": "without effect on a dataset in a folder of this machine",
    "trainer.compile": "minutes on a CPU",
    "trainer.compile_mode": "without effect unless compiled",
}


def choices(key: str, kind: str) -> list[Any]:
    """Values to draw from: those above, or all that the field can have."""
    if key in VALUES:
        return VALUES[key]
    return [True, False] if kind == "bool" else ast.literal_eval(kind.removeprefix("Literal"))


FIELDS = {key: choices(key, kind) for key, kind, _ in docs() if key not in NOT_DRAWN}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> list[str]:
    """The usual one thrice, one of a single class, two with hardly an image."""
    root = tmp_path_factory.mktemp("odd")
    found = [tiny_dataset.uri] * 3
    for classes, images in ((1, 30), (2, 2), (1, 1)):
        folder = root / f"{classes}-{images}"
        for label in range(classes):
            for split in ("train", "val"):
                place = folder / "images" / split / f"class {label}"
                place.mkdir(parents=True)
                for number in range(images):
                    grey = np.full((28, 28, 3), 40 * label + number, np.uint8)
                    Image.fromarray(grey).save(place / f"{number}.png")
        made = make_sample_archives(str(folder / "archives"), str(folder / "images"))
        found.append(ingest(**made.uris(), to=str(folder / "dataset")).dataset.uri)
    return found


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> list[str]:
    """Pretraining runs to build upon, and a file of weights."""
    to = tmp_path_factory.mktemp("parents")
    for variant in ("mae", "msg_gan"):
        assert main(pretraining(variant, tiny_dataset.uri, to)) == 0
    file = str(to / "mae.pth")
    assert main(["export", "--run", str(to / "t_mae"), "--format", "mae", "--to", file]) == 0
    return [str(to / "t_mae"), str(to / "t_msg_gan"), file]


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights for the feature network that otherwise comes from the internet."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"][:10])
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({f"features.{k}": v for k, v in layers.state_dict().items()}, path)
    return str(path)


FEW = ["data.batch_size=8", "trainer.val_samples=8", f"optim.max_steps={STEPS}"]


def pretraining(variant: str, data: str, to: Path) -> list[str]:
    options = ["--variant", variant, "--recipe", "demo", "--tag", "t", "--data", data]
    return ["pretrain", *options, "--to", str(to), *tiny_overrides(variant), *FEW]


Case = Callable[[int, Path], list[str]]


@pytest.fixture
def case(datasets: list[str], parents: list[str], vgg16: str) -> Case:
    """The command line of a draw."""

    def make(number: int, to: Path) -> list[str]:
        draw = random.Random(number)
        stage, variant, data = (draw.choice(x) for x in (STAGES, VARIANTS, datasets))
        if stage == "pretrain":
            command = pretraining(variant, data, to)
        else:
            run, small = draw.choice(parents), ("data.", "trainer.", "optim.")
            command = [stage, "--run", run, "--tag", "t", "--data", data, "--to", str(to)]
            command += [s for s in [*tiny_overrides("mae"), *FEW] if s.startswith(small)]
            command += ["--recipe", "demo", "model.encoder.heads=2"] if run.endswith(".pth") else []
        # Of other stages hardly any: each of them is a refusal.
        known = [key for key in sorted(FIELDS) if stage in stages_of(key) or draw.random() < 0.02]
        keys = draw.sample(known, draw.choice([1, 1, 2, 3, 5, 8]))
        drawn = {key: draw.choice(FIELDS[key]) for key in keys}
        if drawn.get("perceptual.extractor") == "vgg16" and not drawn.get("perceptual.weights"):
            drawn["perceptual.weights"] = vgg16
        return command + [f"{key}={json.dumps(value)}" for key, value in drawn.items()]

    return make


def judge(code: int | None, said: str, complained: str, to: Path, whole: bool) -> None:
    """Whether a command ended in one of the ways that it may.

    whole: whether the data are enough for all steps.
    """
    errors = [line for line in complained.splitlines() if line.startswith("percmae: ")]
    files = [path for path in to.rglob("*") if path.is_file()]
    if code == 0:
        record = json.loads((Path(said.splitlines()[-1]) / "run.json").read_text())
        assert record["status"] == "complete"
        assert record["step"] == STEPS or not whole
        assert not errors
    elif code == 1 and "not finite" in complained:
        assert len(errors) == 1
    else:
        assert code == 2 or (code == 1 and "memory ran out" in complained)
        others = [line for line in complained.splitlines() if line not in errors]
        assert [line for line in others if " INFO: " not in line] == []
        assert len(errors) == 1
        assert files == []


def test_every_field_is_drawn() -> None:
    assert VALUES.keys() | NOT_DRAWN.keys() <= {key for key, *_ in docs()}
    assert [key for key, values in FIELDS.items() if len(values) < 2] == []


@pytest.mark.parametrize("number", range(DRAWS))
def test_a_run_or_one_line(
    number: int, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "runs"
    command = case(number, to)
    capsys.readouterr()
    code: int | str | None
    try:
        code = main(command)
    except SystemExit as stopped:
        code = stopped.code
    said, complained = capsys.readouterr()
    print(*command, "\n", complained)  # shown where it fails
    judge(code, said, complained, to, whole="/dataset/" in command[command.index("--data") + 1])


@pytest.mark.parametrize("number", range(DRAWS, DRAWS + DRAWS // 30))
def test_several_processes_agree(number: int, case: Case, tmp_path: Path) -> None:
    """On a run, or on the same line each."""
    to = tmp_path / "runs"
    command = case(number, to)
    first, second = percmae(command, tmp_path / "said", size=2)
    print(*command, "\n", first.stderr, second.stderr)
    assert first.returncode == second.returncode
    judge(first.returncode, first.stdout, first.stderr, to, whole=False)
