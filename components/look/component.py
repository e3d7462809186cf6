"""The first step of retraining: is there anything new?"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def look(
    images: str,
    labels: str,
    store: str,
    name: str,
    model: str,
    start: str,
    rule: list[str],
    variant: str,
    recipe: str,
    size: str,
    tag: str,
    seed: int,
    overrides: list[str],
    launcher: str,
    train_image: str,
    nodes: int,
    gpus: int,
    job: list[str],
    pipeline_run: str,
    schedule: str,
    dataset: Output[Dataset],
) -> NamedTuple("Look", [("Output", bool), ("tag", str), ("overrides", list)]):  # type: ignore[valid-type]
    """Check the parameters, bring the dataset up to date, and see whether there is anything new.

    Args:
        images: Folder or prefix, table, archives or shards; s3:// URI or path.
        labels: Of images: auto or folders.
        store: URI below which datasets, runs and models are kept.
        name: Name of the dataset; it lies at <store>/datasets/<name>.
        model: Name of the model; it lies at <store>/models/<model>.
        start: Where the pretraining begins: champion or afresh.
        rule: Of champion and challenger, as key=value.
        variant: Objective: mae, ssim and so on.
        recipe: Optimiser and schedule: mae, reference or demo.
        size: Encoder; empty keeps the recipe's.
        tag: Experiment tag; that of a round has a mark of its images behind it.
        seed: Of the runs.
        overrides: Settings of the trainings as key=value.
        launcher: What trains: pytorchjob, trainjob, job, or local for the step itself.
        train_image: Image of the jobs; empty for percmae's own.
        nodes: Pods that train together.
        gpus: GPUs a pod.
        job: Further settings of the jobs as key=value.
        pipeline_run: Id of the pipeline's run.
        schedule: By which it is started, in five fields; empty for none.
        dataset: The dataset's manifest; its metadata has the URI, the digest and the split sizes.

    Returns:
        Output: Whether there are training images that the newest version does not know.
        tag: Of the runs of this round.
        overrides: The same, with what the pretraining starts from.
    """
    from percmae.stages import retrain

    return tuple(
        retrain.look(
            images, labels, store, name, model, start, rule, variant, recipe, size, tag, seed,
            overrides, schedule,
            retrain.Placement(launcher, train_image, nodes, gpus, job, pipeline_run=pipeline_run),
            dataset,
        )
    )  # fmt: skip
