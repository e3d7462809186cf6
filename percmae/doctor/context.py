"""What ``percmae doctor --cluster`` looks at: a namespace, for jobs of some settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from percmae.jobs.client import Client, Refused
from percmae.jobs.names import KFP_NAMESPACE, NAMESPACE, Object, Resource
from percmae.jobs.schema import JobSettings

# The Service of the store that a Kubeflow Pipelines brings along, and the overlay for it.
_STORES = {"seaweedfs": "kfp", "minio-service": "kfp-minio"}


@dataclass(frozen=True)
class Context:
    """What is looked at, and for whom.

    client: asks the API server about the namespace; given: the names of the settings that somebody
    asked for; kfp: beside Kubeflow Pipelines; store: the bucket; timeout: seconds for each try.
    """

    client: Client
    settings: JobSettings
    given: frozenset[str]
    kfp: bool
    store: str
    timeout: float

    @property
    def namespace(self) -> str:
        return self.client.namespace

    def find(self, plural: str, name: str, api_version: str = "v1") -> Object | None:
        """An object of the namespace; None when there is none."""
        return self.client.get(self.client.path(Resource(api_version, plural), name))

    def serves(self, resource: Resource) -> bool:
        """Whether the API server knows this kind in this version."""
        served = self.client.get(f"/apis/{resource.api_version}")
        return served is not None and resource.plural in [r["name"] for r in served["resources"]]

    def apply(self, part: str) -> str:
        """The command that applies one part of k8s/base to the namespace."""
        if self.kfp:
            return f"kubectl apply -k k8s/overlays/{self.kfp_overlay}"
        if self.namespace == NAMESPACE:
            return f"kubectl apply -k k8s/base/{part}"
        renamed = f"sed 's/namespace: {NAMESPACE}/namespace: {self.namespace}/'"
        return f"kubectl kustomize k8s/base/{part} | {renamed} | kubectl apply -f -"

    @cached_property
    def kfp_overlay(self) -> str:
        """The overlay beside Kubeflow Pipelines that goes with the store it has here."""
        if self.namespace != KFP_NAMESPACE and not self.has_service("ml-pipeline", self.namespace):
            return "kfp-profile"
        where = KFP_NAMESPACE if self.has_service("ml-pipeline") else self.namespace
        for service, overlay in _STORES.items():
            if self.has_service(service, where):
                return overlay
        return "kfp-s3"

    def has_service(self, name: str, namespace: str = KFP_NAMESPACE) -> bool:
        """Whether a namespace has this Service, as far as one may look."""
        try:
            path = f"/api/v1/namespaces/{namespace}/services/{name}"
            return self.client.get(path) is not None
        except Refused as error:
            if error.status != 403:
                raise
            return False

    @property
    def kubectl(self) -> str:
        return f"kubectl -n {self.namespace}"
