"""The first step: whether the run's parameters can work at all."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check(
    variant: str,
    recipe: str,
    size: str,
    tag: str,
    seeds: list[int],
    overrides: list[str],
    store: str,
    launcher: str,
    train_image: str,
    nodes: int,
    gpus: int,
    job: list[str],
    label_fractions: list[float] = [1.0],  # noqa: B006
) -> None:
    """Refuse parameters that some later step would refuse, before any data is read.

    Args:
        variant: Objective: mae, ssim and so on.
        recipe: Optimiser and schedule: mae, reference or demo.
        size: Encoder; empty keeps the recipe's.
        tag: Experiment tag; empty for none.
        seeds: Of the runs, one or more different ones.
        overrides: Settings of the trainings as key=value.
        store: URI below which datasets, runs and reports are kept.
        launcher: What trains: pytorchjob, trainjob, job, or local for the step itself.
        train_image: Image of the jobs; empty for percmae's own.
        nodes: Pods that train together.
        gpus: GPUs a pod.
        job: Further settings of the jobs as key=value.
        label_fractions: Shares of the labels to fine-tune on.
    """
    from percmae.stages import steps

    steps.check(
        variant, recipe, size, tag, seeds, overrides, store,
        steps.Placement(launcher, train_image, nodes, gpus, job),
        label_fractions,
    )  # fmt: skip
