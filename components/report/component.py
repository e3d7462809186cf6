"""The report of all seeds."""

from kfp import dsl
from kfp.dsl import HTML, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    pretrained: Input[list[Model]],
    probes: Input[list[Model]],
    controls: Input[list[Model]],
    pixels: Input[list[Model]],
    fine_tuned: bool,
    label_fractions: list[float],
    store: str,
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Write the report of all seeds, to <store>/reports/<name> and as an artifact.

    Args:
        pretrained: The pretraining runs, one a seed.
        probes: Their linear probes.
        controls: The probes of the untrained encoders.
        pixels: The probes of the images' own pixels.
        fine_tuned: Whether there are fine-tuned runs too, and their controls.
        label_fractions: Shares of the labels that these learned from.
        store: URI below which reports are kept.
        page: The report.
        metrics: Mean accuracies over the seeds.
    """
    from percmae.stages import steps

    steps.report(
        pretrained, [*probes, *controls, *pixels], fine_tuned, label_fractions, store, page, metrics
    )
