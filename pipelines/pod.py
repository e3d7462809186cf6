"""What the pods of the pipeline's steps need of a cluster: the store's keys, memory, a place.

KFP keeps this apart from the pipeline itself, in a second YAML document (the platform spec).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from percmae.errors import ConfigError
from percmae.jobs.names import (
    ACCESS_KEY,
    KFP_SECRET,
    PULL_SECRETS_VARIABLE,
    SECRET_KEY,
    SESSION_TOKEN,
    SESSION_TOKEN_VARIABLE,
    STORE,
)
from percmae.jobs.parts import EFFECTS
from percmae.jobs.schema import PullPolicy

POLICIES = get_args(PullPolicy)


START_SECONDS = 600
"""Seconds after which KFP ends a step that does little: its pod has a node, but cannot start."""


@dataclass(frozen=True)
class PodSettings:
    """The same for all steps.

    store_secret, store_access_key, store_secret_key: the secret with the store's keys, and its
    entries. store_config: the ConfigMap with AWS_ENDPOINT_URL and AWS_REGION. Only names: nothing
    secret is compiled into a pipeline, and it fits any namespace that has them. shm: size of the
    memory-backed /dev/shm. train_image: of the jobs that they launch, where a run names none.
    tolerations: (key, value or "" for any, effect or "" for any).
    """

    store_secret: str = KFP_SECRET
    store_access_key: str = ACCESS_KEY
    store_secret_key: str = SECRET_KEY
    store_config: str = STORE
    shm: str = "2Gi"
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[tuple[str, str, str], ...] = ()
    train_image: str = ""


def configure(task: Any, pod: PodSettings | None, store: bool = True, short: bool = False) -> Any:
    """Give a step's task these settings and return it; None leaves it as it is, for local runs.

    store: whether it reaches the store; without, it starts where there are no keys. short: whether
    it does little, so that what has not ended within START_SECONDS could not start.
    """
    if pod is None:
        return task
    import kfp.kubernetes as kubernetes  # so that the error says what is missing, if it is

    if store:
        _give_store(task, pod)
    if short:
        kubernetes.set_timeout(task, START_SECONDS)
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


def _give_store(task: Any, pod: PodSettings) -> None:
    import kfp.kubernetes as kubernetes

    keys = {pod.store_access_key: _ACCESS, pod.store_secret_key: _SECRET}
    kubernetes.use_secret_as_env(task, pod.store_secret, keys)
    token = {SESSION_TOKEN: SESSION_TOKEN_VARIABLE}  # of keys that expire
    kubernetes.use_secret_as_env(task, pod.store_secret, token, optional=True)
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        # AWS S3 itself has no endpoint to set. A ConfigMap that is not there at all is a mistake.
        optional = name == "AWS_ENDPOINT_URL"
        kubernetes.use_config_map_as_env(task, pod.store_config, {name: name}, optional=optional)
    kubernetes.empty_dir_mount(task, "shm", _SHM, medium="Memory", size_limit=pod.shm)


_ACCESS, _SECRET, _SHM = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "/dev/shm"


def pod_of(platform: dict[str, Any], inputs: dict[str, dict[str, Any]]) -> PodSettings:
    """The settings that a compiled pipeline was made with: its platform spec, its parameters.

    The defaults for what they do not say, as those that somebody else has made.
    """
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    steps = kubernetes.get("deploymentSpec", {}).get("executors", {}).values()
    step: dict[str, Any] = next((each for each in steps if "secretAsEnv" in each), {})
    train_image = inputs.get("train_image", {}).get("defaultValue", PodSettings.train_image)
    found: dict[str, Any] = {"train_image": train_image}
    for secret in step.get("secretAsEnv", [])[:1]:
        keys = {entry["envVar"]: entry["secretKey"] for entry in secret["keyToEnv"]}
        found |= {
            "store_secret": secret["secretName"],
            "store_access_key": keys.get(_ACCESS, ACCESS_KEY),
            "store_secret_key": keys.get(_SECRET, SECRET_KEY),
        }
    for config in step.get("configMapAsEnv", [])[:1]:
        found["store_config"] = config["configMapName"]
    for mount in step.get("emptyDirMounts", []):
        if mount["mountPath"] == _SHM:
            found["shm"] = mount["sizeLimit"]
    found["image_pull_policy"] = step.get("imagePullPolicy")
    pull = step.get("imagePullSecret", [])
    found["image_pull_secrets"] = tuple(secret["secretName"] for secret in pull)
    labels = step.get("nodeSelector", {}).get("labels", {})
    found["node_selector"] = tuple(labels.items())
    found["tolerations"] = tuple(
        (taint["key"], taint.get("value", ""), taint.get("effect", ""))
        for taint in step.get("tolerations", [])
    )
    return PodSettings(**found)


def pod_settings(
    *,
    node_selector: list[str] | None = None,
    tolerations: list[str] | None = None,
    image_pull_secrets: list[str] | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Fields of PodSettings from words as on a command line, without those that were not given.

    node_selector: ``label=value``; tolerations: ``key[=value][:effect]`` as kubectl writes taints.
    Raises ConfigError for one that is not of this form.
    """
    policy = values.get("image_pull_policy")
    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"image pull policy {policy!r}: one of {', '.join(POLICIES)}")
    values["node_selector"] = tuple(_label(text) for text in node_selector or ())
    values["tolerations"] = tuple(_toleration(text) for text in tolerations or ())
    values["image_pull_secrets"] = tuple(image_pull_secrets or ())
    return {name: value for name, value in values.items() if value not in (None, ())}


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
