"""The pipeline as a KFP DAG, compiled for a cluster or run on this machine."""

NAME = "percmae-train"
"""Of the pipeline in KFP, and of its schedule unless another is given."""
EXPERIMENT = "percmae"
"""The experiment in KFP that runs belong to unless another is given."""
