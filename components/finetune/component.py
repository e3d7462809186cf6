"""Fine-tuning of a pretrained encoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.launching import launching


@launching
def finetune(
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
    label_fraction: float = 1.0,
    untrained: bool = False,
) -> None:
    """Fine-tune a pretrained encoder on the labels; reuses a finished run.

    Args:
        dataset: What to train on.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
        label_fraction: Share of each class's training images whose labels are used.
        untrained: The control: from scratch, from the weights that pretraining began with.
    """
    from percmae.stages import steps

    steps.finetune(
        pretrained,
        dataset,
        overrides,
        model,
        metrics,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
        label_fraction,
        untrained,
    )
