"""What a pretraining makes of images of the test set."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.launching import launching


@launching
def reconstruct(
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
    page: Output[HTML],
) -> None:
    """Evaluate a pretraining run: how well it reconstructs images of the test set.

    Args:
        model: A finished pretraining run.
        dataset: The dataset whose test set is used.
        metrics: PSNR (dB) and SSIM.
        page: The reconstructions, beside what the encoder saw and the originals.
    """
    from percmae.stages import steps

    steps.reconstruct(
        model,
        dataset,
        metrics,
        page,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
    )
