"""The pipeline's steps as KFP components, one folder a step.

A component is only the outside of a function in ``percmae.stages``: names, types and descriptions
for the UI. KFP copies the source of the decorated function into the compiled pipeline and runs it
in the container, so everything it needs is imported inside it. ``install_kfp_package=False``: the
image brings kfp along, and no step installs anything when it runs.
"""

from percmae.jobs.names import PIPELINE_IMAGE

IMAGE = PIPELINE_IMAGE
"""Image the steps run in unless the pipeline is compiled with another (``--image``)."""
