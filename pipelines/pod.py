"""What the pods of the pipeline's steps need of a cluster: the store's keys, sizes, a place.

KFP keeps this apart from the pipeline itself, in a second YAML document (the platform spec).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    PullPolicy,
)
from percmae.stages.notify import WEBHOOK
from percmae.storage.outage import OUTAGE_VARIABLE
from pipelines.step import STEPS, Steps, apply, steps_of, tasks, with_words

POLICIES = get_args(PullPolicy)


@dataclass(frozen=True)
class PodSettings:
    """The same for all steps, but for ``steps``.

    store_secret, store_access_key, store_secret_key: the secret with the store's keys, and its
    entries. store_config: the ConfigMap with AWS_ENDPOINT_URL, AWS_REGION and, where it is to
    be another, PERCMAE_STORE_OUTAGE_SECONDS. Only names: nothing
    secret is compiled into a pipeline, and it fits any namespace that has them. shm: size of the
    memory-backed /dev/shm. train_image: of the jobs that they launch, where a run names none.
    tolerations: (key, value or "" for any, effect or "" for any). steps: of each step's pod, by the
    name of its component. parallelism: seeds that are worked on at a time; 0 for all. run_ttl,
    run_deadline: seconds for which what is left of a run in the cluster is kept after its end, and
    which it may take in all (KFP 2.17 or newer); None leaves them to KFP, or sets none.
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
    steps: Steps = STEPS
    parallelism: int = 0
    run_ttl: int | None = None
    run_deadline: int | None = None


def configure(task: Any, pod: PodSettings | None, store: bool = True) -> Any:
    """Give a step's task these settings and return it; None leaves it as it is, for local runs.

    store: whether it reaches the store; without, it starts where there are no keys.
    """
    if pod is None:
        return task
    import kfp.kubernetes as kubernetes  # so that the error says what is missing, if it is

    if store:
        _give_store(task, pod)
    apply(task, dict(pod.steps)[task.component_spec.name])
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
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", OUTAGE_VARIABLE):
        # AWS S3 itself has no endpoint to set. A ConfigMap that is not there at all is a mistake.
        optional = name != "AWS_REGION"
        kubernetes.use_config_map_as_env(task, pod.store_config, {name: name}, optional=optional)
    kubernetes.empty_dir_mount(task, "shm", _SHM, medium="Memory", size_limit=pod.shm)


def give_webhook(task: Any, pod: PodSettings | None) -> None:
    """Let a step tell the webhook of the secret WEBHOOK_SECRET, where there is one."""
    if pod is None:
        return  # it has this machine's environment
    import kfp.kubernetes as kubernetes

    kubernetes.use_secret_as_env(task, WEBHOOK_SECRET, {"url": WEBHOOK}, optional=True)


WEBHOOK_SECRET = "percmae-webhook"
"""Its entry url is the address of the webhook."""
_ACCESS, _SECRET, _SHM = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "/dev/shm"


def pod_of(pipeline: dict[str, Any], platform: dict[str, Any]) -> PodSettings:
    """The settings that a compiled pipeline was made with: its spec and platform spec.

    The defaults for what they do not say, as those that somebody else has made.
    """
    inputs = pipeline.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    run = kubernetes.get("pipelineConfig", {})
    loops = [task["iteratorPolicy"] for task in tasks(pipeline) if "iteratorPolicy" in task]
    steps = kubernetes.get("deploymentSpec", {}).get("executors", {}).values()
    step: dict[str, Any] = next((each for each in steps if "secretAsEnv" in each), {})
    train_image = inputs.get("train_image", {}).get("defaultValue", PodSettings.train_image)
    found: dict[str, Any] = {
        "train_image": train_image,
        "steps": steps_of(pipeline, kubernetes),
        "parallelism": max((int(loop.get("parallelismLimit", 0)) for loop in loops), default=0),
        "run_ttl": run.get("resourceTtlOnCompletion"),
        "run_deadline": run.get("activeDeadlineSeconds"),
    }
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

    node_selector: ``label=value``; tolerations: ``key[=value][:effect]`` as kubectl writes taints;
    steps: words for :func:`with_given`. Raises ConfigError for one that is not of this form.
    """
    policy = values.get("image_pull_policy")
    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"image pull policy {policy!r}: one of {', '.join(POLICIES)}")
    values["node_selector"] = tuple(_label(text) for text in node_selector or ())
    values["tolerations"] = tuple(_toleration(text) for text in tolerations or ())
    values["image_pull_secrets"] = tuple(image_pull_secrets or ())
    return {name: value for name, value in values.items() if value not in (None, (), [])}


def with_given(pod: PodSettings, given: Mapping[str, Any]) -> PodSettings:
    """Settings with what :func:`pod_settings` has made of words.

    Raises ConfigError for words about steps that Kubernetes or KFP would refuse.
    """
    changed = dict(given)
    changed["steps"] = with_words(pod.steps, changed.pop("steps", ()))
    return replace(pod, **changed)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise ConfigError(f"node selector {text!r}: give label=value")
    return key, value


def _toleration(text: str) -> tuple[str, str, str]:
    from percmae.jobs.parts import EFFECTS  # not for --help

    taint, _, effect = text.partition(":")
    key, _, value = taint.partition("=")
    if not key or (effect and effect not in EFFECTS):
        raise ConfigError(
            f"toleration {text!r}: give key, key=value or key=value:EFFECT with an effect of "
            f"{', '.join(EFFECTS)}"
        )
    return key, value, effect
