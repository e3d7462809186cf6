"""Evaluation: classification figures on the test set, reconstruction quality on a fixed set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from percmae.data.augment import Framed, framed_transform
from percmae.data.decode import Once, check_formats, telling
from percmae.data.mixture import AnyDataset, open_data, open_one, require_labels
from percmae.data.shards import SPLITS, Dataset
from percmae.data.split_digest import split_digest
from percmae.engine.distributed import World, distributed
from percmae.engine.features import judging_network
from percmae.engine.finetune import score, trained_classifier
from percmae.engine.loaders import eval_loader
from percmae.engine.metrics import perceptual_distance, psnr, ssim
from percmae.engine.pictures import (
    denormalise,
    makes_whole_images,
    paste_visible,
    reconstruction_grid,
)
from percmae.engine.precision import autocast
from percmae.engine.pretrain import FIXED_MASK_SEED, fixed_draws
from percmae.engine.representation import representation
from percmae.engine.tracking import png
from percmae.engine.weights import network_weights
from percmae.errors import DataError, UserError
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import load_strict
from percmae.progress import note, warn
from percmae.runs.evaluation import (
    EVALUATION_PICTURE,
    NEIGHBOURS_PICTURE,
    ClassFigures,
    ClassifierEvaluation,
    Evaluation,
    EvaluationResult,
    RandomGuess,
    Reconstruction,
    ReconstructionEvaluation,
    Samples,
    stored_evaluation,
    write_evaluation,
)
from percmae.runs.files import DatasetIdentity
from percmae.runs.mlflow import tell
from percmae.runs.predictions import Class, Predictions
from percmae.runs.record import PICTURES, Run
from percmae.storage import StorePath
from percmae.storage.outage import outage

# Reconstruction quality is measured on the first images of the test set: always the same ones.
RECONSTRUCTED = 1000
PICTURED = 8


@outage()
def evaluate(run: str, data: str) -> EvaluationResult:
    """Figures of a finished run on the test set of the dataset whose manifest is ``data``.

    A probe or fine-tuning gives a ClassifierEvaluation, of the labelled images; a pretraining run
    gives a ReconstructionEvaluation (visible patches pasted, under fixed masks; effective rank,
    k-NN and an embedding of the encoder's features, the last two where there are labels), and
    pictures. Written to ``<run>/evaluation.json`` (and ``mae_recon_out/evaluation.png``,
    ``neighbours.png``; of a classifier ``predictions.json``); an evaluation of the same weights on
    the same data is reused.

    Raises DataError when there is no such run or the classes differ, UserError when it is not
    complete and for a classifier without labels to judge it by.
    """
    opened = Run.open(run)
    dataset = (
        open_data(data) if opened.config.stage == "pretrain" else open_one(data, "a classifier")
    )
    earlier = stored_evaluation(opened, dataset)
    if earlier is not None:
        note(f"{run}: evaluation unchanged, reused")
        tell(opened, opened.config, earlier)
        return EvaluationResult(earlier, reused=True)
    with distributed(opened.config) as world:
        evaluation: Evaluation
        predictions = None
        if isinstance(dataset, Dataset) and opened.config.stage != "pretrain":
            evaluation, predictions = _classification(opened, dataset, world)
        else:
            evaluation = _reconstruction(opened, dataset, world)
    write_evaluation(opened.path, evaluation, predictions)
    tell(opened, opened.config, evaluation)
    return EvaluationResult(evaluation, reused=False)


def _identity(run: Run, dataset: AnyDataset) -> dict[str, Any]:
    """Of what the figures are: the fields that every Evaluation has.

    Images are counted that the run's stage uses: of a classifier those with labels.
    """
    record = run.record
    splits = {name: dataset.split(name) for name in SPLITS}
    if record.stage != "pretrain":
        splits = {name: split.labelled() for name, split in splits.items()}
    return {
        "run": run.uri,
        "name": record.name,
        "key": record.key,
        "stage": record.stage,
        "variant": record.variant,
        "seed": record.seed,
        "baseline": record.baseline,
        "data": DatasetIdentity(uri=dataset.uri, digest=dataset.digest),
        "samples": Samples(**{name: len(split) for name, split in splits.items()}),
    }


def _classification(
    run: Run, dataset: Dataset, world: World
) -> tuple[ClassifierEvaluation, Predictions]:
    require_labels(dataset, f"evaluating {run.uri}")
    classes = len(dataset.classes)
    if classes != run.config.classifier.classes:
        raise DataError(
            f"run {run.uri} tells {run.config.classifier.classes} classes apart, dataset "
            f"{dataset.uri} has {classes}; evaluate on the dataset it was trained for, "
            f"{run.record.data.uri}"
        )
    model = trained_classifier(run).to(world.device)
    loader = eval_loader(run.config, dataset, "test", world)
    if len(loader.split) < len(dataset.split("test")):
        whole = len(dataset.split("test"))
        note(f"{len(loader.split):,} of {whole:,} test images have a label; these count")
    answers = torch.zeros(len(loader.split), dtype=torch.int64, device=world.device)
    scores = score(model, run.config, loader, world, answers)
    test = split_digest(dataset, "test")
    predictions = Predictions(
        key=run.key,
        test=test,
        classes=[Class(wnid=info.wnid, name=info.name) for info in dataset.classes],
        keys=[key.decode(errors="backslashreplace") for key in loader.split.keys.tolist()],
        labels=loader.split.labels.tolist(),
        predicted=answers.tolist(),
    )
    evaluation = ClassifierEvaluation(
        **_identity(run, dataset),
        top1=scores.top(1),
        top5=scores.top(5),
        loss=scores.loss,
        ece=scores.calibration_error,
        random_guess=RandomGuess(top1=1 / classes, top5=min(5, classes) / classes),
        classes=[
            ClassFigures(wnid=info.wnid, name=info.name, samples=samples, top1=top1)
            for info, (samples, top1) in zip(dataset.classes, scores.per_class(), strict=True)
        ],
        confusion=scores.confusion.tolist(),
        test=test,
    )
    return evaluation, predictions


def pretrained_generator(run: Run, world: World) -> MaskedAutoencoder:
    generator = build_model(run.config)
    load_strict(generator, network_weights(run.uri, "generator"), f"run {run.uri}")
    return generator.to(world.device).eval()


def _pictures(
    generator: MaskedAutoencoder, run: Run, images: Tensor, noise: Tensor, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """(originals, reconstructions) in [0, 1] and the mask, for normalised images."""
    with autocast(run.config, world.device):
        reconstructed, mask = generator.reconstructions(images, noise)
    augment = run.config.data.augment
    return denormalise(images, augment), denormalise(reconstructed[0], augment), mask


@torch.no_grad()
def _reconstruction(run: Run, dataset: AnyDataset, world: World) -> Evaluation:
    generator = pretrained_generator(run, world)
    loader = eval_loader(run.config, dataset, "test", world)
    count = min(RECONSTRUCTED, loader.samples)
    noise = fixed_draws(count, world.device).mask_noise(generator.patches)
    judge = judging_network(run.config.data.image_size)
    figures: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "distance": []}
    grid: Tensor | None = None
    for _, _, batch in loader.batches():
        wanted = batch.ids < count
        if not bool(wanted.any()):
            break
        images, ids = batch.images[wanted], batch.ids[wanted]
        originals, reconstructed, mask = _pictures(generator, run, images, noise[ids], world)
        # As one looks at it: what was seen is pasted over, so only the removed patches can err.
        pasted = paste_visible(originals, reconstructed, mask)
        figures["psnr"].append(psnr(pasted, originals).cpu())
        figures["ssim"].append(ssim(pasted, originals).cpu())
        if judge is not None:
            judge.to(world.device)
            figures["distance"].append(perceptual_distance(judge, pasted, originals).cpu())
        if grid is None:
            first = (originals[:PICTURED], reconstructed[:PICTURED], mask[:PICTURED])
            grid = reconstruction_grid(*first, makes_whole_images(run.config))
    if grid is not None:
        (run.path / PICTURES / EVALUATION_PICTURE).write_bytes(png(grid))
    means = {name: float(torch.cat(v).mean()) if v else None for name, v in figures.items()}
    told = representation(generator, run, dataset, world)
    if told.gallery is not None:
        (run.path / PICTURES / NEIGHBOURS_PICTURE).write_bytes(png(told.gallery))
    return ReconstructionEvaluation(
        **_identity(run, dataset),
        labelled=bool(dataset.classes),
        rank=told.rank,
        knn=told.knn,
        embedding=told.embedding,
        reconstruction=Reconstruction(
            **means,
            samples=count,
            mask_seed=FIXED_MASK_SEED,
            mask_ratio=run.config.model.mask_ratio,
        ),
    )


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
    transform = framed_transform(config.data, False, "pretrain")
    formats = check_formats(config.data.formats)
    with telling(Once(warn)):
        pixels = torch.stack([_read(image, transform, formats) for image in images])
    with distributed(config) as world:
        unturned = torch.zeros(len(pixels), dtype=torch.bool, device=world.device)
        batch = transform.finish(pixels.to(world.device), unturned)
        generator = pretrained_generator(opened, world)
        noise = fixed_draws(len(batch), world.device).mask_noise(generator.patches)
        made = _pictures(generator, opened, batch, noise, world)
        grid = reconstruction_grid(*made, makes_whole_images(config))
    StorePath(to).write_bytes(png(grid))


def _read(image: str, transform: Framed, formats: Sequence[str]) -> Tensor:
    path = StorePath(image)
    if not path.exists():
        raise DataError(f"image {image}: there is no such file")
    pixels = transform.pixels(path.read_bytes(), name=f"image {image}", formats=formats)
    return torch.from_numpy(pixels.copy())
