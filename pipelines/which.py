"""The pipelines by their names."""

from __future__ import annotations

from typing import Any

from components import IMAGE
from pipelines.pod import PodSettings


def made(which: str, image: str = IMAGE, pod: PodSettings | None = None) -> Any:
    """The pipeline, all steps of which run in ``image``; call it with arguments to run it.

    which: of pipelines.PIPELINES; pod: what the steps' pods need of a cluster; None for a run on
    this machine.
    """
    if which == "retrain":
        from pipelines.retrain import retrain_pipeline

        return retrain_pipeline(image, pod)
    from pipelines.train import train_pipeline

    return train_pipeline(image, pod)


def compile_pipeline(
    which: str, output: str, image: str = IMAGE, pod: PodSettings | None = None
) -> None:
    """Write a pipeline as a YAML file that KFP (the UI, ``kfp.Client``) takes as it is."""
    from kfp.compiler import Compiler

    Compiler().compile(made(which, image, pod or PodSettings()), output)
