"""Champion and challenger."""

from kfp import dsl
from kfp.dsl import HTML, Input, Metrics, Model, Output

from components.launching import launching


@launching
def judge(
    model: Input[Model],
    store: str,
    name: str,
    rule: list[str],
    launcher: str,
    train_image: str,
    nodes: int,
    gpus: int,
    job: list[str],
    pipeline_run: str,
    task_config: dsl.TaskConfig,
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Add a run to a model as challenger, hold it against the champion, promote the better one.

    Args:
        model: A finished and evaluated fine-tuning.
        store: URI below which models are kept.
        name: Name of the model; it lies at <store>/models/<name>.
        rule: When a challenger takes the champion's place, as key=value.
        page: Why, and the images on which the two differ.
        metrics: The shares of both, and whether the challenger was promoted.
    """
    from percmae.stages import retrain

    retrain.judge(
        model, store, name, rule, page, metrics,
        retrain.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
    )  # fmt: skip
