"""Linear probing of a frozen encoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.launching import launching


@launching
def probe(
    pretrained: Input[Model],
    dataset: Input[Dataset],
    overrides: list[str],
    launcher: str,
    train_image: str,
    nodes: int,
    gpus: int,
    job: list[str],
    pipeline_run: str,
    task_config: dsl.TaskConfig,
    model: Output[Model],
    metrics: Output[Metrics],
    features: str = "pretrained",
) -> None:
    """Train a linear layer on a frozen encoder; reuses a finished run.

    Args:
        dataset: What to train on.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
        features: Of the pretrained encoder, or a control: untrained, the encoder as it was before
            pretraining; pixels, the image's own.
    """
    from percmae.stages import steps

    steps.probe(
        pretrained,
        dataset,
        overrides,
        model,
        metrics,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
        features,
    )
