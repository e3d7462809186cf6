"""The pipeline as a KFP DAG, compiled for a cluster or run on this machine."""

NAME, RETRAIN = "percmae-train", "percmae-retrain"
"""Of the pipelines in KFP, and of their schedules unless another is given."""
EXPERIMENT = "percmae"
"""The experiment in KFP that runs belong to unless another is given."""
