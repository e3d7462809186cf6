"""Names that Kubernetes and those who work on it use, each in this one place."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from percmae import __version__

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as its API has it."""
Objects = list[Object]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class Resource(NamedTuple):
    """Objects of one kind, as the API has them; ``since`` what release of whom ours are for."""

    api_version: str
    plural: str
    kind: str = ""
    since: str = ""

    @property
    def group(self) -> str:
        """Its API group, empty for the core's."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Its version in that group."""
        return self.api_version.rpartition("/")[2]


PYTORCH_JOB = Resource("kubeflow.org/v1", "pytorchjobs", "PyTorchJob", "training operator 1.9")
# (The first release with runtimePatches and activeDeadlineSeconds.)
TRAIN_JOB = Resource(
    "trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer 2.2"
)
JOB = Resource("batch/v1", "jobs", "Job")
JOBS = {each.kind: each for each in (PYTORCH_JOB, TRAIN_JOB, JOB)}
"""What carries out a work, by its kind; in lower case that is the job setting ``kind``."""
POD = Resource("v1", "pods", "Pod")
EVENT = Resource("v1", "events", "Event")

NAMESPACE = "percmae"
"""Where the files of k8s/ put everything."""
BUCKET = "s3://percmae"
"""Where the store's datasets, runs and models are, unless another place is named."""

BUCKET_VARIABLE = "PERCMAE_BUCKET"
"""Entry of the store's ConfigMap: the bucket, or what of it is ours."""

PIPELINE_IMAGE = f"percmae-pipeline:{__version__}"
"""Image that runs the pipeline's steps, or all of its DAG (``docker/``): no torch in it."""
LAUNCHER = "percmae-launcher"
"""Service account that may create and follow jobs."""
STORE = "percmae-store"
"""ConfigMap with the store's address, and Secret with its keys."""
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "accesskey", "secretkey", "sessiontoken"
"""Entries of that Secret; the token only with keys that expire."""
SESSION_TOKEN_VARIABLE = "AWS_SESSION_TOKEN"
"""Variable of a pod that has the token."""
STORE_ROOT = "percmae-store-root"
"""Secret with MinIO's root user, for MinIO and what makes the user of STORE."""
KFP_NAMESPACE = "kubeflow"
"""Where Kubeflow Pipelines is installed, unless another namespace is named."""
KFP_ACCOUNTS = ("pipeline-runner", "default-editor")
"""Service accounts of Kubeflow Pipelines' steps: standalone, and in a profile of Kubeflow."""
KFP_SECRET = "mlpipeline-minio-artifact"
"""Secret with the keys of the store that comes with Kubeflow Pipelines."""
STORE_NOTES = {
    "store_secret": "percmae.dev/secret",
    "store_access_key": "percmae.dev/access-key",
    "store_secret_key": "percmae.dev/secret-key",
}
"""Job settings that the store's ConfigMap may say beside its address, and in which annotation."""

PULL_SECRETS_VARIABLE = "PERCMAE_IMAGE_PULL_SECRETS"
"""Variable of who launches: secrets for the registry of the jobs' images, with commas between."""
STEP_SIZED_VARIABLE = "PERCMAE_STEP_SIZED"
"""Variable of a step: what is set as its task's resources sizes the step's own pod, not its job."""

PYTORCH = "pytorch"
"""What the training operator requires as name of the container that trains."""
NODE = "node"
"""The replicated job, and its container, that train in a TrainJob's runtime for torch."""
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Variable: seconds torchrun gives its processes to end when told to; torch's own default is 30."""
METRICS_VARIABLE = "PERCMAE_METRICS_PORT"
"""Variable of a pod that trains: the port at which it serves figures to Prometheus."""
IMAGE_VARIABLE = "PERCMAE_IMAGE"
"""Variable of a pod that trains: its image, where that is named by digest, for the run's record."""
METRICS = "metrics"
"""What that port is called in the pod."""
GRACE = 120
"""Seconds between being told to stop and being killed, where nothing else is said."""


def is_pinned(image: str) -> bool:
    """Whether a container image is named by digest, so that it is one for good."""
    return "@sha256:" in image


def shutdown_timeout(grace: int = GRACE) -> str:
    """What torchrun gives its processes of them; the rest is its own."""
    return str(max(1, grace - 5))


GPU_TYPE_LABEL = "nvidia.com/gpu.product"
"""Label of a node: the kind of its GPUs."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Label of a job: the queue in which it waits."""
INSTANCE_LABEL = "app.kubernetes.io/instance"
"""Label of a job and its pods: the job's name."""
PART_OF_LABEL = "app.kubernetes.io/part-of"
"""Label of everything of ours."""
RUN_LABEL = "percmae.dev/run"
"""Label of a job and its pods: the run it is about."""
CLAIMS, OUTSIDE = "followers.percmae.dev/", "submit"
"""Labels of a job: who follows it. Behind the prefix, the id of a pipeline's run, or OUTSIDE."""
YIELDS_ANNOTATION = "percmae.dev/makes-room-for"
"""Annotation of a job that is suspended meanwhile: the older one that needs its nodes."""
TTL_ANNOTATION = "percmae.dev/ttl"
"""Annotation of a TrainJob: seconds to keep it when it has ended."""
DIGEST_ANNOTATION = "percmae.dev/spec-digest"
"""Annotation of a job: what it was made of, so that a launcher knows its own job again."""
UNDISTURBED = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations of pods whose work is long, so that what makes room on nodes takes others first: a
training that is moved loses what it has done since its last checkpoint, of several pods that of
all."""

LONGEST_LABEL = 63
"""Characters of a name that is a DNS label: of a pod's host, a Service, a label's value."""
LONGEST_JOB_NAME = 45
"""A job's name is the stem of the names of its pods and Services, which end with -worker-<number>
or -node-0-<number>-<5 letters>."""
LONGEST_CRONJOB_NAME = 52
"""Kubernetes puts a dash and ten digits behind it."""
