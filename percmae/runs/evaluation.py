"""``evaluation.json``: a run's figures on the test split, for one state of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, model_validator

from percmae.config.schema import Stage, Variant
from percmae.errors import DataError
from percmae.progress import warn
from percmae.runs.files import DatasetIdentity, Figure, Part, parse
from percmae.runs.predictions import PREDICTIONS, Predictions, write_predictions
from percmae.runs.record import Run, RunRecord
from percmae.storage import StorePath

if TYPE_CHECKING:
    from percmae.data.mixture import AnyDataset

EVALUATION = "evaluation.json"
EVALUATION_PICTURE = "evaluation.png"  # of a pretraining run, among its pictures
GRID_COLUMNS = ("original", "masked", "reconstruction", "reconstruction with visible pasted")
"""What stands beside each other in the former, a row an image (percmae.engine.pictures)."""
GRID_GAP = 2  # pixels between these
NEIGHBOURS_PICTURE = "neighbours.png"  # likewise: test images beside those nearest to them
AGAIN = "evaluate the run again"


class Samples(Part):
    """How many images each split of the dataset has."""

    train: int
    val: int
    test: int


class Evaluation(Part):
    """What both kinds tell; ``key`` is the run's, so it says of which weights the figures are."""

    format: Literal["percmae-evaluation/1"] = "percmae-evaluation/1"
    run: str
    name: str
    key: str
    stage: Stage
    variant: Variant
    seed: int
    baseline: bool
    data: DatasetIdentity
    split: Literal["test"] = "test"
    samples: Samples


class Reconstruction(Part):
    """Mean quality of ``samples`` reconstructions under fixed masks: PSNR in dB, SSIM in −1..1.

    distance: by the features of a network that no loss uses
    (percmae.engine.metrics.perceptual_distance); there are earlier files without it.
    """

    psnr: Figure
    ssim: Figure
    distance: Figure | None = Field(default=None, exclude_if=lambda distance: distance is None)
    samples: int
    mask_seed: int
    mask_ratio: float


class Neighbours(Part):
    """k-NN of test images among training images in feature space (percmae.engine.representation).

    top1, untrained_top1: shares in 0..1, by the encoder and by what it was before; bank,
    queries: training and test images; neighbours: that vote.
    """

    top1: float
    untrained_top1: float
    bank: int
    queries: int
    neighbours: int


class EffectiveRank(Part):
    """Effective rank (RankMe) of features of test images (percmae.engine.rankme).

    value, untrained: of the encoder, and of what it was before; images, dimensions: of the matrix
    of features, neither of which a rank can exceed.
    """

    value: Figure
    untrained: Figure
    images: int
    dimensions: int


class Embedding(Part):
    """Features of some test images in two dimensions.

    points: a place (x, y) each; labels: their classes, as places in the list of names.
    """

    method: str
    points: list[list[float]]
    labels: list[int]
    classes: list[str]


class ReconstructionEvaluation(Evaluation):
    """Of a pretraining run; what came later is None in an earlier file.

    labelled: whether the dataset has labels at all, as all had in an earlier file.
    """

    reconstruction: Reconstruction
    labelled: bool = Field(default=True, exclude_if=lambda labelled: labelled)
    rank: EffectiveRank | None = Field(default=None, exclude_if=lambda rank: rank is None)
    knn: Neighbours | None = Field(default=None, exclude_if=lambda knn: knn is None)
    embedding: Embedding | None = Field(default=None, exclude_if=lambda picture: picture is None)


class RandomGuess(Part):
    """Accuracy of guessing, shares in 0..1."""

    top1: float
    top5: float


class ClassFigures(Part):
    """One class: its test images and the share of them that was right (None without images)."""

    wnid: str
    name: str
    samples: int
    top1: Figure


class ClassifierEvaluation(Evaluation):
    """Of a probe or fine-tuning.

    top1, top5, ece (calibration error): shares in 0..1; loss: cross-entropy in nats; confusion:
    counts, a row for each true class and a column for each predicted one; test: digest of the test
    images, which an earlier file lacks, as its run lacks the answer for each of them
    (percmae.runs.predictions).
    """

    top1: float
    top5: float
    loss: Figure
    ece: Figure
    random_guess: RandomGuess
    classes: list[ClassFigures]
    confusion: list[list[int]]
    test: str | None = Field(default=None, exclude_if=lambda test: test is None)

    @model_validator(mode="after")
    def _square(self) -> ClassifierEvaluation:
        size = len(self.classes)
        if len(self.confusion) != size or any(len(row) != size for row in self.confusion):
            raise ValueError(
                f"confusion must have a row and a column for each of the {size} classes"
            )
        return self


class EvaluationResult(NamedTuple):
    """What evaluating returns: the figures, and whether earlier ones were reused."""

    evaluation: Evaluation
    reused: bool


def figures(evaluation: Evaluation) -> dict[str, float | None]:
    """The test figures of an evaluation by name."""
    if isinstance(evaluation, ClassifierEvaluation):
        return evaluation.model_dump(include={"top1", "top5", "loss", "ece"})
    assert isinstance(evaluation, ReconstructionEvaluation), "of a pretraining"
    told = evaluation.reconstruction.model_dump(include={"psnr", "ssim", "distance"})
    if evaluation.rank is not None:
        told["rankme"] = evaluation.rank.value
    if evaluation.knn is not None:
        told["knn_top1"] = evaluation.knn.top1
    return told


def read_evaluation(folder: StorePath, record: RunRecord) -> Evaluation | None:
    """The figures in a run's folder; None before ``percmae evaluate``.

    Raises DataError for a damaged file, and for figures of other weights than the run's (the
    folder may have been trained anew since).
    """
    path = folder / EVALUATION
    if not path.exists():
        return None
    kind = ReconstructionEvaluation if record.stage == "pretrain" else ClassifierEvaluation
    evaluation: Evaluation = parse(kind, path.read_bytes(), path.uri, AGAIN)
    for key in ("stage", "seed", "baseline", "key"):
        ours, theirs = getattr(record, key), getattr(evaluation, key)
        if theirs != ours:
            raise DataError(
                f"{path.uri}: its {key} is {theirs!r} but the run's is {ours!r}; {AGAIN}"
            )
    return evaluation


def write_evaluation(
    folder: StorePath, evaluation: Evaluation, predictions: Predictions | None = None
) -> None:
    """Put the figures into a run's folder; of a classifier behind its answer for each image."""
    if predictions is not None:
        write_predictions(folder, predictions)
    (folder / EVALUATION).write_json(evaluation.model_dump(mode="json"))


def stored_evaluation(run: Run, dataset: AnyDataset) -> Evaluation | None:
    """The figures in a run's folder if they are of its weights and of this dataset.

    What is there and cannot be used is said, since it is about to be replaced. Raises UserError
    for a run that is not complete.
    """
    run.require_complete()
    try:
        evaluation = read_evaluation(run.path, run.record)
    except DataError as error:
        warn(str(error))
        return None
    if evaluation is None or evaluation.data.digest != dataset.digest:
        return None
    return evaluation if has_predictions(run, evaluation) else None


def has_predictions(run: Run, evaluation: Evaluation) -> bool:
    """Whether the answers beside figures are there, or no classifier gave any."""
    if not isinstance(evaluation, ClassifierEvaluation):
        return True
    return evaluation.test is not None and (run.path / PREDICTIONS).exists()
