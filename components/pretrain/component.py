"""Pretraining of a masked autoencoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.launching import launching


@launching
def pretrain(
    dataset: Input[Dataset],
    store: str,
    seed: int,
    variant: str,
    recipe: str,
    size: str,
    tag: str,
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
) -> None:
    """Pretrain a masked autoencoder; goes on from the last checkpoint, reuses a finished run.

    Args:
        dataset: What to train on.
        store: URI below which runs are kept; this one lies at <store>/runs/seed-<seed>/<name>.
        seed: Seed of the weights, the order of the data, its augmentation and the masks.
        variant: Objective: mae, ssim and so on.
        recipe: Optimiser and schedule: mae, reference or demo.
        size: Encoder: tiny, small, base, large or huge; empty keeps the recipe's.
        tag: Experiment tag; the run is named <tag>_<variant>. Empty for none.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
    """
    from percmae.stages import steps

    steps.pretrain(
        dataset, store, seed, variant, recipe, size, tag, overrides, model, metrics,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
    )  # fmt: skip
