"""Where a job runs and with what: one flat set of settings, a docstring under each."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from percmae import __version__
from percmae.config.variants import SETTINGS
from percmae.jobs.names import (
    ACCESS_KEY,
    GRACE,
    SECRET_KEY,
    SESSION_TOKEN,
    STORE,
    Objects,
    PullPolicy,
)
from percmae.jobs.syntax import memory

JobKind = Literal["pytorchjob", "trainjob", "job"]
KINDS: tuple[str, ...] = get_args(JobKind)
TRAIN_IMAGE = f"percmae-train:{__version__}"
"""Image of the jobs unless another is given (``docker/``)."""
USING_A_GPU = ("evaluate", "reconstruct")
"""Stages that do not train and are quicker on a GPU."""
SHARED = ("ingest",)
"""Stages that do not train whose work the pods of an Indexed Job share."""
OF_TRAININGS = frozenset(
    (
        *("kind", "nodes", "min_nodes", "max_restarts", "volcano_queue", "runtime", "clean_pods"),
        *("resources", "topology_spread", "metrics_port"),
    )
)
"""Settings that say how processes train together: what does not train is one pod of a plain Job."""

Strings = dict[str, str]
USER = 10001
"""User and group of the processes: one that no system has a name for."""


class Size(NamedTuple):
    """Cores, GiB of memory, and GiB of it for /dev/shm."""

    cpu: int
    memory: int
    shm: int


PER_GPU = Size(cpu=8, memory=48, shm=8)
"""What a training gets for each GPU where nothing else is said."""
LEAST_PER_GPU = Size(cpu=2, memory=16, shm=1)
"""Less for each GPU is warned of: loaders that cannot keep it busy, or run out of memory."""
WITHOUT = Size(cpu=4, memory=16, shm=2)
"""What every other pod gets."""


@dataclass(config=SETTINGS)
class JobSettings:
    """How and where a job runs; what it carries out is a Work."""

    kind: JobKind = "pytorchjob"
    """pytorchjob (Kubeflow Training Operator), trainjob (Kubeflow Trainer), or job: one pod of a
    plain Kubernetes Job, which needs no operator. Stages that do not train are always plain."""
    image: str = TRAIN_IMAGE
    """Container image, best pinned by digest (name@sha256:…)."""
    image_pull_policy: PullPolicy | None = None
    """null: Kubernetes' own default (Always for the tag latest). A trainjob has its runtime's."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of secrets for a private registry."""
    namespace: str | None = None
    """null: the launcher's own, or that of the kubeconfig's context."""
    service_account: str = "percmae-train"
    """Service account of the pods; it needs no rights in the cluster."""

    nodes: PositiveInt = 1
    """Pods that train together, or share an ingest. Each has a machine of its own where its GPUs
    fill one; elsewhere topology_spread says so."""
    min_nodes: PositiveInt | None = None
    """Elastic training (pytorchjob): go on with as few as this many pods; null: all or none."""
    max_restarts: NonNegativeInt = 3
    """Elastic training: how often the processes may start over in their pods."""
    gpus: NonNegativeInt = 1
    """GPUs a pod, and training processes in it; 0 trains on the CPU, in one process a pod."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the cluster offers GPUs."""
    gpu_type: str | None = None
    """Only nodes with this label nvidia.com/gpu.product, such as NVIDIA-H100-80GB-HBM3."""
    cpu: str | None = None
    """CPU cores a pod is promised (a Kubernetes quantity); null: 8 for each GPU of a training (less
    than 2 is warned of), 4 elsewhere."""
    cpu_limit: str | None = None
    """Most CPU cores a pod may use; null for no limit, so that loaders use what is idle."""
    memory: str | None = None
    """Memory a pod is promised and may use (a Kubernetes quantity); null: 48Gi for each GPU of a
    training (less than 16Gi is warned of), 16Gi elsewhere."""
    shm: str | None = None
    """Size of the memory-backed /dev/shm, where loaders hand over batches; counts as the pod's
    memory. null: 8Gi for each GPU of a training (less than 1Gi is warned of), 2Gi elsewhere."""
    scratch: str = "10Gi"
    """Size of the writable /tmp; everything else in the container is read-only. An ingest keeps
    images of archives there on their way, up to three quarters: give 200Gi or so where the archives
    are large. Checkpoints of a training lie there on their way to a store, up to three where it is
    slow or away (at ViT-L 4 GB each)."""
    resources: Strings = Field(default_factory=dict)
    """Further resources that a pod of a training is promised, such as {rdma/ib: 1} or
    {hugepages-2Mi: 1Gi}; counts and quantities as in a container's limits."""
    capabilities: list[str] = Field(default_factory=list)
    """Linux capabilities to add to none, such as IPC_LOCK. Processes of root have them
    (run_as_user=0), those of others only by a file that carries them. The namespace must admit
    both: that of k8s/base does not."""
    run_as_user: NonNegativeInt | None = USER
    """User and group of the processes; null leaves both to the cluster, as OpenShift wants it."""

    node_selector: Strings = Field(default_factory=dict)
    """Labels the node must have."""
    tolerations: Objects = Field(default_factory=list)
    """Taints of nodes to put up with, as in a pod."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity as in a pod."""
    topology_spread: Objects = Field(default_factory=list)
    """Topology spread constraints of a training's pods, as in a pod; without a labelSelector, over
    the pods of the same job. One a machine: [{topologyKey: kubernetes.io/hostname, maxSkew: 1,
    whenUnsatisfiable: DoNotSchedule}]."""
    priority_class: str | None = None
    """Priority class of the pods. A trainjob has its runtime's."""
    queue: str | None = None
    """Kueue: the LocalQueue the job waits in."""
    volcano_queue: str | None = None
    """Volcano: start all pods together, in this queue (pytorchjob)."""
    runtime: str = "torch-distributed"
    """trainjob: name of the ClusterTrainingRuntime. Under the stock torch-distributed every failure
    is tried again; runtime=percmae (k8s/trainer/runtime.yaml) knows which exit codes are final."""

    backoff_limit: NonNegativeInt = 3
    """Restarts after failures that may pass (exit codes ≥ 128); all others are final. A
    pytorchjob's are those without a checkpoint in between, counted by its pods in the run's folder
    and by the launcher that follows it. A trainjob has its runtime's."""
    deadline: PositiveInt | None = Field(default=14 * 24 * 3600)
    """Seconds a job may run, waiting in a queue not counted; null for no limit. A pytorchjob that
    no launcher follows may take longer, by the time that its pods were replaced after."""
    queue_deadline: PositiveInt | None = Field(default=7 * 24 * 3600)
    """Seconds a launcher waits for a job to begin; null: as long as the queue takes."""
    stuck_deadline: PositiveInt = 600
    """Seconds a launcher waits for a pod that has a node but cannot start (no such image)."""
    ttl: NonNegativeInt | None = 7 * 24 * 3600
    """Seconds after its end until a job is removed from the cluster; null keeps it. A trainjob, and
    a pytorchjob that failed, are removed by the next launcher in their namespace."""
    clean_pods: Literal["All", "Running", "None"] = "Running"
    """pytorchjob: pods to remove when it ends; All takes the logs of a failure with it."""
    grace: PositiveInt = GRACE
    """Seconds a pod has to save a checkpoint when it is told to stop."""

    store_config: str = STORE
    """ConfigMap whose entries (AWS_ENDPOINT_URL …) become environment variables."""
    store_secret: str | None = STORE
    """Secret with the store's keys; null where the service account has a role that gives them."""
    store_access_key: str = ACCESS_KEY
    """Entry of that secret with the access key."""
    store_secret_key: str = SECRET_KEY
    """Entry of that secret with the secret key."""
    store_session_token: str = SESSION_TOKEN
    """Entry of that secret with the session token of keys that expire; it need not be there."""
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = 9400
    """Port, named metrics, at which pods of a training serve figures to Prometheus
    (k8s/components/monitoring); null for none. A trainjob has the name from its runtime."""
    env: Objects = Field(default_factory=list)
    """Further environment variables, as in a container; secrets by valueFrom only."""
    volumes: Objects = Field(default_factory=list)
    """Further volumes, as in a pod; each is mounted somewhere."""
    volume_mounts: Objects = Field(default_factory=list)
    """Where those volumes are mounted, as in a container."""
    labels: Strings = Field(default_factory=dict)
    """Further labels of the job and its pods."""
    annotations: Strings = Field(default_factory=dict)
    """Further annotations of the job and its pods."""

    def for_stage(self, stage: str, trains: bool) -> JobSettings:
        """What the job of a stage takes of these settings.

        One that does not train is a plain Job: one pod (an ingest as many as there are nodes), one
        process in it, and a GPU only if there are any and it uses one. Sizes that are not given
        follow from its GPUs.
        """
        if trains:
            size = Size(*(self.gpus * each for each in PER_GPU)) if self.gpus else WITHOUT
            return self._of_size(size)
        gpus = min(1, self.gpus) if stage in USING_A_GPU else 0
        return dataclasses.replace(
            self,
            kind="job",
            nodes=self.nodes if stage in SHARED else 1,
            min_nodes=None,
            volcano_queue=None,
            gpus=gpus,
            gpu_type=self.gpu_type if gpus else None,
            resources={},
            topology_spread=[],
        )._of_size(WITHOUT)

    def _of_size(self, size: Size) -> JobSettings:
        """With the sizes that are not given; /dev/shm takes at most half of the memory."""
        total = self.memory if self.memory is not None else f"{size.memory}Gi"
        half = int(memory(total, "job setting memory")) >> 21
        shm = f"{size.shm}Gi" if half >= size.shm << 10 else f"{half}Mi"
        return dataclasses.replace(
            self,
            cpu=self.cpu if self.cpu is not None else str(size.cpu),
            memory=total,
            shm=self.shm if self.shm is not None else shm,
        )
