"""Options of ``python -m pipelines`` about the steps' pods and a run as a whole."""

from __future__ import annotations

import argparse
import re
from typing import Any

from components import IMAGE
from percmae.errors import ConfigError
from percmae.jobs.names import STORE
from pipelines.pod import POLICIES, PodSettings, pod_settings, with_given
from pipelines.step import STEP_KEYS, STEPS, check_steps


def pod_of_words(args: argparse.Namespace) -> PodSettings:
    """What a pipeline is compiled with. Raises ConfigError."""
    return with_given(PodSettings(), given(args))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line has of it, as :func:`pipelines.pod.pod_settings` gives it.

    Raises ConfigError for what has no effect on the pipeline that is meant.
    """
    check_steps(args.pipeline, args.steps)
    if args.pipeline == "retrain" and args.parallelism is not None:
        raise ConfigError("--parallelism: the retrain pipeline trains one seed; leave it out")
    return pod_settings(
        store_secret=args.store_secret,
        store_access_key=args.store_access_key,
        store_secret_key=args.store_secret_key,
        store_config=args.store_config,
        image_pull_policy=args.image_pull_policy,
        image_pull_secrets=args.image_pull_secret,
        node_selector=args.node_selector,
        tolerations=args.toleration,
        **{name: getattr(args, name) for name in _ONLY_IN_KFP.values()},
    )


_ONLY_IN_KFP = {
    "--train-image": "train_image",
    "--step": "steps",
    "--parallelism": "parallelism",
    "--run-ttl": "run_ttl",
    "--run-deadline": "run_deadline",
}


def only_in_kfp(args: argparse.Namespace) -> list[str]:
    """The options that were given and that a CronJob without KFP has no use for."""
    return [o for o, name in _ONLY_IN_KFP.items() if getattr(args, name) not in (None, [], "")]


def add_step_options(sub: argparse.ArgumentParser, image: str | None) -> None:
    """Add them to an action; image: the default of ``--image``."""
    group = sub.add_argument_group("the steps' pods")
    group.add_argument(
        "--image",
        default=image,
        help=f"container image of all steps, best pinned by digest (default: {IMAGE})",
    )
    group.add_argument(
        "--store-secret",
        metavar="NAME",
        help="secret with the store's keys, for steps and the jobs they launch (default: "
        f"{PodSettings.store_secret}, which KFP brings along; of a CronJob: {STORE})",
    )
    for option, default in (
        ("--store-access-key", PodSettings.store_access_key),
        ("--store-secret-key", PodSettings.store_secret_key),
    ):
        text = f"the entry of that secret (default: {default})"
        group.add_argument(option, metavar="ENTRY", help=text)
    group.add_argument(
        "--store-config",
        metavar="NAME",
        help="ConfigMap with AWS_ENDPOINT_URL and AWS_REGION (default: "
        f"{PodSettings.store_config})",
    )
    group.add_argument(
        "--image-pull-secret",
        action="append",
        default=[],
        metavar="NAME",
        help="for a private registry, of steps and the jobs they launch; may be repeated",
    )
    group.add_argument(
        "--train-image",
        metavar="IMAGE",
        help="of the jobs that steps launch, where a run's parameter train_image names none "
        "(default: percmae's own)",
    )
    group.add_argument("--image-pull-policy", metavar="P", help=f"one of {', '.join(POLICIES)}")
    group.add_argument(
        "--node-selector",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="only nodes with this label; steps that launch a job hand it on; may be repeated",
    )
    group.add_argument(
        "--toleration",
        action="append",
        default=[],
        metavar="KEY[=VALUE][:EFFECT]",
        help="a taint to put up with; steps that launch a job hand it on; may be repeated",
    )
    group.add_argument(
        "--step",
        dest="steps",
        action="append",
        default=[],
        metavar="[STEP.]KEY=VALUE",
        help=f"{', '.join(STEP_KEYS)} of all steps' pods, or of one step's "
        f"({', '.join(name for name, _ in STEPS)}), such as ingest.memory=4Gi; what trains with "
        "launcher=local does so in its step's pod (may be repeated)",
    )
    group = sub.add_argument_group("a run as a whole")
    group.add_argument(
        "--parallelism", type=_count, metavar="N", help="seeds at a time; 0 for all (default)"
    )
    group.add_argument(
        "--run-ttl",
        type=_seconds,
        metavar="SECONDS",
        help="until what a run has left in the cluster, its jobs too, is removed after its end "
        "(default: as KFP is set up, mostly an hour)",
    )
    group.add_argument(
        "--run-deadline",
        type=_seconds,
        metavar="SECONDS",
        help="that a run may take in all; both need KFP 2.17 (default: no limit)",
    )


def _count(text: str) -> int:
    return _whole(text, 0)


def _seconds(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
