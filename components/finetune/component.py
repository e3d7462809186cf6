"""Fine-tuning of a pretrained encoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    pretrained: Input[Model],
    dataset: Input[Dataset],
    overrides: list[str],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Fine-tune a pretrained encoder on the labels; reuses a finished run.

    Args:
        pretrained: The pretraining run; sizes, recipe, tag and seed are taken from it.
        dataset: What to train on.
        overrides: Settings as key=value; those that begin with finetune. or all. apply here.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
    """
    from percmae import stages

    stages.finetune(pretrained, dataset, overrides, model, metrics)
