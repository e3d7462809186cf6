"""Figures of a finished run on the test set."""

from kfp import dsl
from kfp.dsl import ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.launching import launching


@launching
def evaluate(
    model: Input[Model],
    dataset: Input[Dataset],
    launcher: str,
    train_image: str,
    nodes: int,
    gpus: int,
    job: list[str],
    pipeline_run: str,
    task_config: dsl.TaskConfig,
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> None:
    """Evaluate a run on the test set: a classifier's accuracy, a pretraining's reconstructions.

    Args:
        model: Any finished run.
        dataset: The dataset whose test set is used.
        metrics: Top-1, top-5, calibration error and random guess; or PSNR (dB) and SSIM.
        confusion: Confusion matrix of a classifier of up to 100 classes, otherwise empty.
    """
    from percmae.stages import steps

    steps.evaluate(
        model,
        dataset,
        metrics,
        confusion,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
    )
