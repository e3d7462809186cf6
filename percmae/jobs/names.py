"""Names that Kubernetes and those who work on it use, each in this one place."""

from __future__ import annotations

from typing import Any

from percmae import __version__

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as its API has it."""

PIPELINE_IMAGE = f"percmae-pipeline:{__version__}"
"""Image that runs the pipeline's steps, or all of its DAG (``docker/``): no torch in it."""

LAUNCHER = "percmae-launcher"
"""Service account that may create and follow jobs."""

GPU_TYPE_LABEL = "nvidia.com/gpu.product"
"""Label of a node: the kind of its GPUs."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Label of a job: the queue in which it waits."""

LONGEST_LABEL = 63
"""Characters of a name that is a DNS label: of a pod's host, a Service, a label's value."""
LONGEST_JOB_NAME = 45
"""A job's name is the stem of the names of its pods and Services, which end with -worker-<number>
or -node-0-<number>-<5 letters>."""
LONGEST_CRONJOB_NAME = 52
"""Kubernetes puts a dash and ten digits behind it."""
