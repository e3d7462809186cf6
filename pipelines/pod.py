"""What the pods of the pipeline's steps need of a cluster: the store's keys, memory, a place.

KFP keeps this apart from the pipeline itself, in a second YAML document (the platform spec).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from percmae.errors import ConfigError
from percmae.jobs.names import ACCESS_KEY, PULL_SECRETS_VARIABLE, SECRET_KEY, STORE
from percmae.jobs.parts import EFFECTS
from percmae.jobs.schema import PullPolicy

POLICIES = get_args(PullPolicy)


@dataclass(frozen=True)
class PodSettings:
    """The same for all steps.

    store_secret, store_access_key, store_secret_key: the secret with the store's keys, and its
    entries. store_config: the ConfigMap with AWS_ENDPOINT_URL and AWS_REGION. Only names: nothing
    secret is compiled into a pipeline, and it fits any namespace that has them. shm: size of the
    memory-backed /dev/shm. train_image: of the jobs that they launch, where a run names none.
    tolerations: (key, value or "" for any, effect or "" for any).
    """

    store_secret: str = STORE
    store_access_key: str = ACCESS_KEY
    store_secret_key: str = SECRET_KEY
    store_config: str = STORE
    shm: str = "2Gi"
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[tuple[str, str, str], ...] = ()
    train_image: str = ""


def configure(task: Any, pod: PodSettings | None) -> Any:
    """Give a step's task these settings and return it; None leaves it as it is, for local runs."""
    if pod is None:
        return task
    import kfp.kubernetes as kubernetes  # so that the error says what is missing, if it is

    keys = {
        pod.store_access_key: "AWS_ACCESS_KEY_ID",
        pod.store_secret_key: "AWS_SECRET_ACCESS_KEY",
    }
    kubernetes.use_secret_as_env(task, pod.store_secret, keys)
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        # AWS S3 itself has no endpoint to set. A ConfigMap that is not there at all is a mistake.
        optional = name == "AWS_ENDPOINT_URL"
        kubernetes.use_config_map_as_env(task, pod.store_config, {name: name}, optional=optional)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)
    if pod.image_pull_policy is not None:
        kubernetes.set_image_pull_policy(task, pod.image_pull_policy)
    if pod.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pod.image_pull_secrets))
        task.set_env_variable(PULL_SECRETS_VARIABLE, ",".join(pod.image_pull_secrets))
    for key, value in pod.node_selector:
        kubernetes.add_node_selector(task, key, value)
    for key, value, effect in pod.tolerations:
        kubernetes.add_toleration(
            task,
            key=key,
            operator="Equal" if value else "Exists",
            value=value or None,
            effect=effect or None,
        )
    return task


def pod_settings(
    *,
    node_selector: list[str] | None = None,
    tolerations: list[str] | None = None,
    image_pull_secrets: list[str] | None = None,
    **values: Any,
) -> PodSettings:
    """PodSettings from words as on a command line.

    node_selector: ``label=value``; tolerations: ``key[=value][:effect]`` as kubectl writes taints.
    Raises ConfigError for one that is not of this form.
    """
    policy = values.get("image_pull_policy")
    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"image pull policy {policy!r}: one of {', '.join(POLICIES)}")
    return PodSettings(
        node_selector=tuple(_label(text) for text in node_selector or ()),
        tolerations=tuple(_toleration(text) for text in tolerations or ()),
        image_pull_secrets=tuple(image_pull_secrets or ()),
        **{name: value for name, value in values.items() if value is not None},
    )


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise ConfigError(f"node selector {text!r}: give label=value")
    return key, value


def _toleration(text: str) -> tuple[str, str, str]:
    taint, _, effect = text.partition(":")
    key, _, value = taint.partition("=")
    if not key or (effect and effect not in EFFECTS):
        raise ConfigError(
            f"toleration {text!r}: give key, key=value or key=value:EFFECT with an effect of "
            f"{', '.join(EFFECTS)}"
        )
    return key, value, effect
