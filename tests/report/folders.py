"""Writes run folders in the documented format, with figures a small experiment would give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from percmae.config import digest, load_config, to_dict, to_yaml
from percmae.config.naming import Features

DATA = {"uri": "s3://percmae/data/manifest.json", "digest": "sha256:" + "5e" * 32}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
STEPS, EPOCHS, TEST = 200, 10, 1000


def write_run(
    root: Path,
    stage: str = "pretrain",
    seed: int = 0,
    baseline: bool = False,
    accuracy: float | None = 0.8,
    tag: str | None = "try1",
    variant: str = "mae",
    names: list[str] = DIGITS,
    parent: str | None = None,
    features: Features = "pretrained",
    fraction: float = 1.0,
    **changes: Any,
) -> str:
    """A run folder below ``root/seed-N``; accuracy None leaves it unevaluated.

    baseline: an untrained control, as a run's record told it before there were other ``features``;
    changes: other values of run.json. Returns the folder's address.
    """
    few = [f"data.label_fraction={fraction}"] if fraction < 1 else []
    config = load_config(
        variant, "demo", stage, tag=tag, overrides=[f"seed={seed}", "trainer.log_interval=7", *few]
    )
    name = config.name_on("untrained" if baseline else features)
    folder = root / f"seed-{seed}" / name
    folder.mkdir(parents=True)
    info = {
        "format": "percmae-run/1",
        "name": name,
        "stage": stage,
        "variant": variant,
        "tag": tag,
        "seed": seed,
        "key": "sha256:" + "0a" * 32,
        "config_digest": digest(config),
        "data": DATA,
        "parent": parent,
        "baseline": baseline or features != "pretrained",
        **({} if features == "pretrained" else {"features": features}),
        "status": "complete",
        "step": STEPS,
        "total_steps": STEPS,
        "epochs": EPOCHS,
        "config": to_dict(config),
        "seconds": 83.4 + seed,
        "started": 1767607200.5,
        "finished": 1767607283.9,
        "metrics": {"loss": 0.31},
        "versions": {"percmae": "0.1.0", "torch": "2.13.0", "timm": "1.0.22", "python": "3.11.9"},
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text(_metrics(stage, seed, accuracy or 0.5))
    if stage == "pretrain":
        (folder / "mae_recon_out").mkdir()
        grid(seed).save(folder / "mae_recon_out" / "step-00000200.png")
    if accuracy is not None:
        evaluation = _evaluation(info, accuracy, names)
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        if stage == "pretrain":
            grid(seed).save(folder / "mae_recon_out" / "evaluation.png")
    return str(folder)


def write_experiment(root: Path, seeds: int = 3, **options: Any) -> list[str]:
    """Pretraining, probe, untrained control and fine-tuning for each seed."""
    runs = []
    for seed in range(seeds):
        wobble = 0.01 * math.sin(5 * seed + 1)
        parent = write_run(root, "pretrain", seed, **options)
        rest = {**options, "parent": parent}
        runs += [
            parent,
            write_run(root, "probe", seed, accuracy=0.83 + wobble, **rest),
            write_run(root, "probe", seed, baseline=True, accuracy=0.61 - wobble, **rest),
            write_run(root, "finetune", seed, accuracy=0.94 + wobble / 2, **rest),
        ]
    return runs


def write_rows(root: Path, seeds: int = 2, probe: float = 0.83, pixels: float = 0.7) -> list[str]:
    """What a whole pipeline leaves: every control, and three shares of the labels."""
    runs = []
    for seed in range(seeds):
        wobble = 0.01 * seed
        parent = write_run(root, "pretrain", seed)
        knn = {"top1": 0.7 + wobble, "untrained_top1": 0.5, "bank": 9, "queries": 8}
        places = [[float(x), float(x % 7)] for x in range(40)]
        more = {
            "knn": {**knn, "neighbours": 5},
            "embedding": {
                "method": "t-SNE",
                "points": places,
                "labels": [x % 10 for x in range(40)],
                "classes": DIGITS,
            },
        }
        file = Path(parent) / "evaluation.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        rest: dict[str, Any] = {"parent": parent}
        runs += [
            parent,
            write_run(root, "probe", seed, accuracy=probe + wobble, **rest),
            write_run(root, "probe", seed, features="untrained", accuracy=0.6, **rest),
            write_run(root, "probe", seed, features="pixels", accuracy=pixels, **rest),
        ]
        for fraction, tuned, scratch in ((0.01, 0.7, 0.4), (0.1, 0.8, 0.6), (1.0, 0.9, 0.92)):
            few = {**rest, "fraction": fraction}
            runs += [
                write_run(root, "finetune", seed, accuracy=tuned + wobble, **few),
                write_run(root, "finetune", seed, features="untrained", accuracy=scratch, **few),
            ]
    return runs


def _metrics(stage: str, seed: int, accuracy: float) -> str:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(5, STEPS + 1, 5):
        epoch = step * EPOCHS / STEPS
        loss = 0.25 + 0.75 * math.exp(-step / 45) + 0.01 * float(rng.normal())
        row = {"step": step, "epoch": epoch, "split": "train", "loss": loss, "lr": 1e-3}
        rows.append({**row, "images_per_second": 410.0 + step, "loss/pixels": loss})
        if step % (STEPS // EPOCHS) == 0:
            row = {"step": step, "epoch": epoch, "split": "val", "loss": loss + 0.02}
            learned = accuracy * (1 - math.exp(-epoch / 2))
            rows.append({**row, "knn_top1" if stage == "pretrain" else "top1": learned})
    return "".join(json.dumps(row) + "\n" for row in rows)


def _evaluation(info: dict[str, Any], accuracy: float, names: list[str]) -> dict[str, Any]:
    head = {"format": "percmae-evaluation/1", "run": "here", "split": "test", "data": DATA}
    head |= {key: info[key] for key in ("name", "key", "stage", "variant", "seed", "baseline")}
    if info["stage"] == "pretrain":
        psnr, ssim = 18.2 + 0.1 * info["seed"], 0.71
        figures = {"samples": 64, "mask_seed": 0, "mask_ratio": 0.75}
        return {
            **head,
            "samples": {"train": 3600, "val": 400, "test": TEST},
            "reconstruction": {"psnr": psnr, "ssim": ssim, "distance": 0.4321, **figures},
        }
    confusion = _confusion(accuracy, len(names), info["seed"])
    each = confusion.sum(axis=1)
    right = np.diag(confusion)
    classes = [
        {"wnid": f"n{i:08d}", "name": name, "samples": int(each[i]), "top1": right[i] / each[i]}
        for i, name in enumerate(names)
    ]
    return {
        **head,
        "samples": {"train": 3600, "val": 400, "test": int(each.sum())},
        "top1": float(right.sum() / each.sum()),
        "top5": min(1.0, accuracy + 0.15),
        "loss": 0.6,
        "ece": 0.031,
        "random_guess": {"top1": 1 / len(names), "top5": min(5, len(names)) / len(names)},
        "classes": classes,
        "confusion": confusion.tolist(),
    }


def _confusion(accuracy: float, classes: int, seed: int) -> np.ndarray:
    """Counts of TEST images: rows true, columns predicted; each class has its own difficulty."""
    rng = np.random.default_rng(seed)
    each = max(TEST // classes, 1)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for i in range(classes):
        right = round(each * min(1.0, accuracy + 0.05 * math.sin(3 * i)))
        counts[i, i] = right
        others = np.arange(classes)[np.arange(classes) != i]
        near = 1.0 / (1.0 + np.abs(others - i)) ** 2
        np.add.at(counts[i], rng.choice(others, each - right, p=near / near.sum()), 1)
    return counts


def grid(seed: int, rows: int = 6, side: int = 32) -> Image.Image:
    """Soft blobs: original | masked | blurred | blurred with the visible patches."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    lines = []
    for _ in range(rows):
        cx, cy, w = rng.uniform(0.3, 0.7, 3)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.1 * w))
        image = np.stack([blob, blob * w, 1 - blob], axis=-1)
        keep = np.kron(rng.random((8, 8)) < 0.25, np.ones((side // 8, side // 8)))[..., None]
        made = 0.7 * image + 0.15
        columns = [image, image * keep + 0.5 * (1 - keep), made, image * keep + made * (1 - keep)]
        lines.append(np.concatenate(columns, axis=1))
    pixels = np.concatenate(lines, axis=0)
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8), "RGB")
