"""Evaluation: classification figures on the test set, reconstruction quality on a fixed set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from percmae.data.augment import build_transform
from percmae.data.decode import Once, check_formats, decode, telling
from percmae.data.shards import Dataset
from percmae.engine.distributed import World, mask_noise, world
from percmae.engine.finetune import score, trained_classifier
from percmae.engine.metrics import psnr, ssim
from percmae.engine.pictures import denormalise, paste_visible, reconstruction_grid
from percmae.engine.pretrain import FIXED_MASK_SEED
from percmae.engine.tracking import png
from percmae.engine.training import autocast, eval_loader
from percmae.engine.weights import network_weights
from percmae.errors import DataError, UserError
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import load_strict
from percmae.progress import note
from percmae.runs.record import EVALUATION, Run, stored_evaluation
from percmae.storage import StorePath

FORMAT = "percmae-evaluation/1"
# Reconstruction quality is measured on the first images of the test set: always the same ones.
RECONSTRUCTED = 1000
PICTURED = 8


def evaluate(run: str, data: str) -> dict[str, Any]:
    """Figures of a finished run on the test set of the dataset whose manifest is ``data``.

    A probe or fine-tuning gives top1, top5, loss, calibration error, per-class figures and the
    confusion matrix; a pretraining run gives PSNR and SSIM of its reconstructions (visible
    patches pasted) under fixed masks, and a picture. Written to ``<run>/evaluation.json`` (and
    ``mae_recon_out/evaluation.png``) and returned; an evaluation of the same weights on the same
    data is reused.

    Raises DataError when there is no such run or the classes differ, UserError when it is not
    complete.
    """
    earlier = stored_evaluation(run, data)
    if earlier is not None:
        note(f"{run}: evaluation unchanged, reused")
        return earlier
    opened, dataset = Run.open(run), Dataset.open(data)
    splits = {name: len(dataset.split(name)) for name in ("train", "val", "test")}
    document = {
        "format": FORMAT,
        "run": opened.uri,
        "name": opened.record["name"],
        "key": opened.key,
        "stage": opened.config.stage,
        "variant": opened.config.variant,
        "seed": opened.config.seed,
        "baseline": opened.record["baseline"],
        "data": {"uri": dataset.uri, "digest": dataset.digest},
        "split": "test",
        "samples": splits,
    }
    with world(opened.config) as here:
        work = _reconstruction if opened.config.stage == "pretrain" else _classification
        document.update(work(opened, dataset, here))
    (opened.path / EVALUATION).write_json(document)
    return document


def _classification(run: Run, dataset: Dataset, here: World) -> dict[str, Any]:
    classes = len(dataset.classes)
    if classes != run.config.classifier.classes:
        raise DataError(
            f"run {run.uri} tells {run.config.classifier.classes} classes apart, dataset "
            f"{dataset.uri} has {classes}; evaluate on the dataset it was trained for"
        )
    model = trained_classifier(run).to(here.device)
    scores = score(model, run.config, eval_loader(run.config, dataset, "test", here), here)
    return {
        "top1": scores.top(1),
        "top5": scores.top(5),
        "loss": scores.loss,
        "ece": scores.calibration_error,
        "random_guess": {"top1": 1 / classes, "top5": min(5, classes) / classes},
        "classes": [
            {"wnid": info.wnid, "name": info.name, "samples": samples, "top1": top1}
            for info, (samples, top1) in zip(dataset.classes, scores.per_class(), strict=True)
        ],
        "confusion": scores.confusion.tolist(),
    }


def _generator(run: Run, here: World) -> MaskedAutoencoder:
    generator = build_model(run.config)
    load_strict(generator, network_weights(run.uri, "generator"), f"run {run.uri}")
    return generator.to(here.device).eval()


def _pictures(
    generator: MaskedAutoencoder, run: Run, images: Tensor, noise: Tensor, here: World
) -> tuple[Tensor, Tensor, Tensor]:
    """(originals, reconstructions) in [0, 1] and the mask, for normalised images."""
    images = images.to(here.device)
    with autocast(run.config, here.device):
        made, mask = generator.reconstructions(images, noise.to(here.device))
    augment = run.config.data.augment
    return denormalise(images, augment), denormalise(made[0], augment), mask


@torch.no_grad()
def _reconstruction(run: Run, dataset: Dataset, here: World) -> dict[str, Any]:
    generator = _generator(run, here)
    loader = eval_loader(run.config, dataset, "test", here)
    count = min(RECONSTRUCTED, loader.samples)
    noise = mask_noise(FIXED_MASK_SEED, 0, range(count), count, generator.patches)
    figures: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    grid: Tensor | None = None
    for _, _, batch in loader.batches():
        wanted = batch.ids < count
        if not bool(wanted.any()):
            break
        images, ids = batch.images[wanted], batch.ids[wanted]
        originals, made, mask = _pictures(generator, run, images, noise[ids], here)
        # As one looks at it: what was seen is pasted over, so only the removed patches can err.
        pasted = paste_visible(originals, made, mask)
        figures["psnr"].append(psnr(pasted, originals).cpu())
        figures["ssim"].append(ssim(pasted, originals).cpu())
        if grid is None:
            grid = reconstruction_grid(originals[:PICTURED], made[:PICTURED], mask[:PICTURED])
    if grid is not None:
        (run.path / "mae_recon_out" / "evaluation.png").write_bytes(png(grid))
    means = {name: float(torch.cat(v).mean()) for name, v in figures.items() if v}
    return {
        "reconstruction": {
            **means,
            "samples": count,
            "mask_seed": FIXED_MASK_SEED,
            "mask_ratio": run.config.model.mask_ratio,
        }
    }


@torch.no_grad()
def reconstruct(run: str, images: list[str], to: str) -> None:
    """Reconstruct images (files or URIs) with a pretraining run and write one PNG to ``to``.

    A row for each image: original, masked, reconstruction, reconstruction with the visible patches
    pasted. The masks are those of the evaluation. Raises DataError for an image that cannot be
    read and UserError for a run that is not a pretraining.
    """
    opened = Run.open(run)
    if opened.config.stage != "pretrain":
        raise UserError(f"run {run} is a {opened.config.stage} run; give a pretraining run")
    if not to.endswith(".png"):
        raise UserError(f"--to {to}: the picture is a PNG; give a name that ends in .png")
    config = opened.config
    transform = build_transform(config.data.augment, config.data.image_size, False, "pretrain")
    formats = check_formats(config.data.formats)
    with telling(Once(note)):
        batch = torch.stack([transform(_read(image, formats)) for image in images])
    with world(config) as here:
        generator = _generator(opened, here)
        patches = generator.patches
        noise = mask_noise(FIXED_MASK_SEED, 0, range(len(batch)), len(batch), patches)
        grid = reconstruction_grid(*_pictures(generator, opened, batch, noise, here))
    StorePath(to).write_bytes(png(grid))


def _read(image: str, formats: Sequence[str]) -> Image:
    path = StorePath(image)
    if not path.exists():
        raise DataError(f"image {image}: there is no such file")
    return decode(path.read_bytes(), name=f"image {image}", formats=formats)
