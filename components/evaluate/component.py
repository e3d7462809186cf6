"""Figures of a finished run on the test set."""

from kfp import dsl
from kfp.dsl import ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    model: Input[Model],
    dataset: Input[Dataset],
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
    from percmae import stages

    stages.evaluate(model, dataset, metrics, confusion)
