"""Linear probing of a frozen encoder."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import IMAGE
from components.passed_on import PASSED_ON


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSED_ON)
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
    untrained: bool = False,
) -> None:
    """Train a linear layer on a frozen encoder; reuses a finished run.

    Args:
        pretrained: The pretraining run; sizes, recipe, tag and seed are taken from it.
        dataset: What to train on.
        overrides: Settings as key=value; those that begin with probe. or all. apply here.
        launcher: Where to train: local (in this step), pytorchjob, trainjob or job.
        train_image: Image of the job; empty for percmae's own.
        nodes: Pods that train together.
        gpus: GPUs a pod.
        job: Further settings of the job as key=value.
        pipeline_run: Id of the pipeline's run.
        task_config: What is set on the task (resources, tolerations, env …) goes to the job.
        model: Names the run; the weights stay in the store.
        metrics: The last training and validation figures.
        untrained: The control: the same probe on the encoder as it was before pretraining.
    """
    from percmae.stages import steps

    steps.probe(
        pretrained,
        dataset,
        overrides,
        model,
        metrics,
        steps.Placement(launcher, train_image, nodes, gpus, job, task_config, pipeline_run),
        untrained,
    )
