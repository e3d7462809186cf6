"""The pipeline as a KFP DAG, compiled for a cluster or run on this machine."""

NAME, RETRAIN = "percmae-train", "percmae-retrain"
"""Of the pipelines in KFP, and of their schedules unless another is given."""
PIPELINES = {"train": NAME, "retrain": RETRAIN}
"""By what each is called on the command line."""
EXPERIMENT = "percmae"
"""The experiment in KFP that runs belong to unless another is given."""
