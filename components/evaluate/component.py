"""Figures of a classifier on the test set."""

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
    """Evaluate a probe or fine-tuning on the test set.

    Args:
        model: A finished probe or fine-tuning.
        dataset: The dataset whose test set is used.
        metrics: Top-1, top-5, calibration error and random guess.
        confusion: Confusion matrix; of more than 100 classes, those with most mistakes.
    """
    from percmae.stages import steps

    steps.evaluate(
        model,
        dataset,
        metrics,
        confusion,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
    )
