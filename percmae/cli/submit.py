"""``percmae submit``: any verb's work done by a job in a cluster."""

from __future__ import annotations

import argparse
import re

from percmae.cli.parser import build_parser
from percmae.command import parse
from percmae.data.addresses import addresses, joined
from percmae.errors import UserError
from percmae.jobs.work import Work, command, training
from percmae.storage import StorePath

_URI = re.compile(r"(--[a-z-]+=|)(s3://.+)")

VERBS = ("sample-data", "ingest", "pretrain", "probe", "finetune", "evaluate", "report", "export")


def work_of(arguments: list[str]) -> Work:
    """The work that ``percmae <arguments>`` would do here.

    A training has the same name and digest as from a pipeline, so each finds the other's job.
    Raises UserError for a verb that makes no sense in a cluster, ConfigError for bad settings.
    """
    if arguments[:1] == [] or arguments[0] not in VERBS:
        raise UserError(
            f"submit {' '.join(arguments[:1]) or '(nothing)'}: give one of {', '.join(VERBS)} and "
            "its options, behind submit's own"
        )
    # In their normal form, so that the same work has the same name.
    arguments = [_normal(argument) for argument in arguments]
    args = parse(build_parser(), arguments)
    for name in ("data", "to", "run", "model", "out", "images"):
        given = getattr(args, name, None) or []
        for value in [given] if isinstance(given, str) else given:
            if not all(part.startswith("s3://") for part in addresses(value)):
                raise UserError(
                    f"--{name} {value}: a pod does not see this machine's files; give s3://"
                )
    if args.verb == "pretrain":
        return _pretraining(args)
    if args.verb in ("probe", "finetune"):
        return _downstream(args)
    named = next(
        (uri for key in ("run", "to", "out") if (uri := getattr(args, key, None))), args.verb
    )
    return command(args.verb, StorePath(named).name, *arguments[1:])


def _normal(argument: str) -> str:
    found = _URI.fullmatch(argument)
    if not found:
        return argument
    return found[1] + joined([StorePath(part).uri for part in addresses(found[2])])


def _pretraining(args: argparse.Namespace) -> Work:
    from percmae.config import load_config

    config = load_config(
        args.variant, args.recipe, "pretrain", args.config, args.overrides, args.tag, args.size
    )
    return training(config, args.data, args.to)


def _downstream(args: argparse.Namespace) -> Work:
    from percmae.runs.downstream import downstream_config, without_own_settings
    from percmae.stages.parent import parent_of

    parent = parent_of(args.run)
    config = downstream_config(
        parent, args.verb, args.recipe, args.config, args.overrides, args.tag, args.features
    )
    base = without_own_settings(parent, args.verb, config.recipe, args.features)
    return training(config, args.data, args.to, args.run, args.features, base)
