"""The last step of every pipeline run, however it ended."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def clean(pipeline_run: str, launcher: str, job: list[str]) -> None:
    """Remove the jobs that the run has left under way, as after a cancellation.

    Args:
        pipeline_run: Id of the pipeline's run.
        launcher: Where the run's steps train; nothing is left behind by local.
        job: Settings of the jobs, of which only a namespace counts here.
    """
    from percmae.stages import steps

    steps.clean(pipeline_run, launcher, job)
