"""Linear probing of a frozen encoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def probe(
    pretrained: Input[Model],
    dataset: Input[Dataset],
    overrides: list[str],
    model: Output[Model],
    metrics: Output[Metrics],
    untrained: bool = False,
) -> None:
    """Train a linear layer on a frozen encoder; reuses a finished run.

    Args:
        pretrained: The pretraining run; sizes, recipe, tag and seed are taken from it.
        dataset: What to train on.
        overrides: Settings as key=value; those that begin with probe. or all. apply here.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
        untrained: The control: the same probe on the encoder as it was before pretraining.
    """
    from percmae import stages

    stages.probe(pretrained, dataset, overrides, model, metrics, untrained)
