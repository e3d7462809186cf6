"""The actions of ``python -m pipelines`` that are for a cluster: compile, submit, schedule.

Each imports its work when it does it, so that --help is quick and asks for no kfp.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from components import IMAGE
from percmae.errors import PercmaeError, UserError
from pipelines import EXPERIMENT, NAME, PIPELINES
from pipelines.options import add_step_options, given, only_in_kfp, pod_of_words
from pipelines.server.api import HOST_VARIABLE, TOKEN_VARIABLE, Connection

if TYPE_CHECKING:
    from pipelines.server.package import Change

_SUBMIT = """\
Start a run of the pipeline in Kubeflow Pipelines.

Uploads the pipeline as a version named after the git commit, unless one with the same content is
there, and prints the link to the run. Parameters are checked here before anything is sent; those
not given keep their defaults."""

_SUBMIT_EXAMPLES = """\
examples:
  python -m pipelines submit --port-forward --param variant=ssim --param 'seeds=[0, 1, 2]'
  python -m pipelines submit --host https://kfp.example --token token.txt --wait \\
      --image registry.example/percmae-pipeline@sha256:…"""

_SCHEDULE = """\
Run the pipeline at certain times: a recurring run in Kubeflow Pipelines, or a CronJob without it.

The same command again changes nothing; with other arguments it replaces the schedule of that name
so that two never start runs. A run is not started while the one before goes on, and starts that
were missed are not caught up on one by one."""

_SCHEDULE_EXAMPLES = f"""\
examples:
  python -m pipelines schedule --port-forward --cron "0 2 * * 0" --param tag=weekly
  python -m pipelines schedule --port-forward --list
  python -m pipelines schedule --port-forward --cron "0 2 * * 0" --param tag=weekly --diff
  python -m pipelines schedule --port-forward --delete {NAME}
  python -m pipelines schedule --cronjob --cron "0 2 * * 0" > cronjob.yaml
  python -m pipelines schedule --port-forward --pipeline retrain --cron "0 3 * * *" \\
      --param images=s3://percmae/images --param model=percmae

cron: minute hour day-of-month month day-of-week, in the time zone of KFP's controller, mostly
UTC. Days and months may have names; 7 is Sunday as well."""

_CRONJOB_ARGUMENTS = {
    "train": "run --launcher pytorchjob --store s3://percmae --archives s3://percmae/archives "
    "--dataset imagenet --recipe mae --seeds 0 --gpus 1 --to /tmp/runs",
    "retrain": "retrain --launcher pytorchjob --store s3://percmae --images s3://percmae/images "
    "--model percmae --recipe mae --gpus 1 --to /tmp/runs",
}


def _compile(args: argparse.Namespace) -> None:
    from percmae.jobs.check import warn_unpinned
    from percmae.storage import local_path
    from pipelines.which import compile_pipeline

    given = args.output or f"{PIPELINES[args.pipeline]}.yaml"
    output = str(local_path(given, "--output"))
    if not output.endswith((".yaml", ".yml")):
        raise UserError(f"--output {output}: KFP takes files whose name ends in .yaml")
    compile_pipeline(args.pipeline, output, args.image, pod_of_words(args))
    warn_unpinned(args.image)
    print(given)


def _submit(args: argparse.Namespace) -> None:
    from pipelines.server.submit import submit

    run = submit(
        _connection(args),
        args.param,
        args.image,
        pod_of_words(args),
        experiment=args.experiment,
        name=args.name,
        service_account=args.service_account,
        wait=args.wait,
        which=args.pipeline,
    )
    print(run.link)


def _schedule(args: argparse.Namespace) -> None:
    from pipelines.server import drift, schedule

    if args.list:
        asked = (_connection(args), args.image, given(args), IMAGE, args.pipeline)
        schedules = drift.deployed_schedules(*asked)
        print(drift.table(schedules) if schedules else "no schedules")
        return
    if args.delete is not None:
        count = schedule.delete(_connection(args), args.delete, PIPELINES[args.pipeline])
        more = f" ({count} recurring runs)" if count > 1 else ""
        print(f"{args.delete}: deleted{more}; runs it has started stay")
        return
    if args.cron is None:
        raise UserError('schedule: --cron is missing, such as --cron "0 2 * * 0"')
    if args.cronjob:
        print(_cronjob(args), end="")
        return
    name = args.name or PIPELINES[args.pipeline]
    wanted = (
        _connection(args),
        name,
        args.cron,
        args.param,
        args.image or IMAGE,
        pod_of_words(args),
    )
    options = {
        "pinned": args.pinned,
        "experiment": args.experiment,
        "service_account": args.service_account,
        "which": args.pipeline,
    }
    if args.diff:
        changes = drift.diff(*wanted, **options)
        _print_changes(changes)
        if changes:
            fields = f"{len(changes)} field{'' if len(changes) == 1 else 's'}"
            raise PercmaeError(f"schedule {name} differs in {fields}; --diff has changed nothing")
        print(f"{name}: as deployed")
        return
    outcome = schedule.schedule(*wanted, **options)
    _print_changes(outcome.changes)
    print(f"{name}: {outcome.did}")
    print(outcome.link)


def _print_changes(changes: list[Change]) -> None:
    for change in changes:
        print(f"{change.field}: {change.deployed} → {change.wanted}")


def _cronjob(args: argparse.Namespace) -> str:
    import yaml

    from percmae.jobs.check import warn_unpinned
    from percmae.jobs.cron import cron_job, launcher_settings
    from percmae.jobs.crontab import parse_cron

    if args.param or only_in_kfp(args):
        raise UserError(
            "--cronjob takes --run, the words of `percmae run`, and no "
            + " or ".join(["--param", *only_in_kfp(args)])
        )
    settings_given = {
        "image": args.image,
        "namespace": args.namespace,
        "store_secret": args.store_secret,
        "store_access_key": args.store_access_key,
        "store_secret_key": args.store_secret_key,
        "store_config": args.store_config,
        "image_pull_secrets": args.image_pull_secret,
        "image_pull_policy": args.image_pull_policy,
    }
    settings = launcher_settings(
        args.job, **{name: value for name, value in settings_given.items() if value is not None}
    )
    cronjob = cron_job(
        args.name or PIPELINES[args.pipeline],
        parse_cron(args.cron),
        _cronjob_words(args),
        settings,
        time_zone=args.time_zone,
    )
    warn_unpinned(settings.image)
    return str(yaml.safe_dump(cronjob, sort_keys=False, width=100))


def _cronjob_words(args: argparse.Namespace) -> list[str]:
    """The words of ``percmae``; a retraining is told its schedule."""
    from percmae.jobs.crontab import parse_cron
    from percmae.stages.rounds import ZONE

    words = shlex.split(args.run or _CRONJOB_ARGUMENTS[args.pipeline])
    if args.pipeline == "retrain" and "--schedule" not in words:
        zone = f"{ZONE}{args.time_zone} " if args.time_zone else ""
        words += ["--schedule", zone + parse_cron(args.cron).standard]
    return words


def _connection(args: argparse.Namespace) -> Connection:
    names = [field.name for field in dataclasses.fields(Connection)]
    return Connection(**{name: getattr(args, name) for name in names})


def add_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the three to a command line; ``action`` makes a subparser of name, help and function."""
    sub = action("compile", "Write the pipeline as YAML for the KFP UI or client.", _compile)
    _pipeline_option(sub)
    sub.add_argument("--output", metavar="FILE", help="default: the pipeline's name, and .yaml")
    add_step_options(sub, IMAGE)

    how = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    sub = action(
        "submit",
        "Start a run in Kubeflow Pipelines.",
        _submit,
        description=_SUBMIT,
        epilog=_SUBMIT_EXAMPLES,
        **how,
    )
    _pipeline_option(sub)
    _param_option(sub)
    sub.add_argument("--name", metavar="RUN", help="of the run (default: pipeline, version, time)")
    _run_options(sub)
    sub.add_argument(
        "--wait",
        action="store_true",
        help="follow the run to its end; exit code 1 and the failed steps when it fails",
    )
    _connection_options(sub)
    add_step_options(sub, IMAGE)

    sub = action(
        "schedule",
        "Run it at certain times, in Kubeflow Pipelines or by a CronJob.",
        _schedule,
        description=_SCHEDULE,
        epilog=_SCHEDULE_EXAMPLES,
        **how,
    )
    _schedule_options(sub)
    _connection_options(sub)
    add_step_options(sub, None)


def _pipeline_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--pipeline", default="train", choices=list(PIPELINES), help="default: %(default)s"
    )


def _param_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the pipeline; may be repeated",
    )


def _run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--experiment", default=EXPERIMENT, metavar="NAME", help="default: %(default)s"
    )
    sub.add_argument(
        "--service-account", metavar="NAME", help="of the steps' pods (default: KFP's own)"
    )


def _schedule_options(sub: argparse.ArgumentParser) -> None:
    _pipeline_option(sub)
    sub.add_argument("--cron", metavar="FIELDS", help='such as "0 2 * * 0": Sundays at 2:00')
    sub.add_argument("--name", metavar="N", help="of the schedule (default: the pipeline's)")
    _param_option(sub)
    which = sub.add_mutually_exclusive_group()
    which.add_argument(
        "--pinned",
        action="store_true",
        default=True,
        help="every run takes the version that is the repo's now (default)",
    )
    which.add_argument(
        "--latest",
        dest="pinned",
        action="store_false",
        help="each run takes the newest version then, whoever has uploaded it",
    )
    _run_options(sub)
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show what is deployed, and its drift")
    instead.add_argument("--delete", metavar="N", help="delete the schedule of this name")
    instead.add_argument(
        "--diff",
        action="store_true",
        help="show what differs from what is deployed, change nothing; exit code 1 if anything",
    )
    instead.add_argument(
        "--cronjob", action="store_true", help="print a CronJob instead: no KFP is needed"
    )
    cronjob = sub.add_argument_group("with --cronjob")
    cronjob.add_argument("--run", metavar="WORDS", help=f"default: {_CRONJOB_ARGUMENTS['train']}")
    cronjob.add_argument(
        "--time-zone", metavar="ZONE", help="such as Europe/Berlin (default: the cluster's)"
    )
    cronjob.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="job setting of the CronJob's own pod; those of the trainings go into --run",
    )


def _connection_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("where KFP is (inside a cluster it is found by itself)")
    group.add_argument(
        "--host", metavar="URL", help=f"of the UI or the API (default: {HOST_VARIABLE})"
    )
    group.add_argument("--port-forward", action="store_true", help="through kubectl")
    group.add_argument(
        "--kfp-namespace",
        default=Connection.kfp_namespace,
        metavar="NS",
        help="where KFP is installed (default: %(default)s)",
    )
    group.add_argument(
        "--namespace", metavar="NS", help="yours, where KFP has several users; of a CronJob"
    )
    group.add_argument(
        "--token",
        metavar="FILE",
        help=f"file with a bearer token (default: the variable {TOKEN_VARIABLE})",
    )
    group.add_argument("--ca", metavar="FILE", help="certificate authority of an https host")
    group.add_argument("--ui", metavar="URL", help="what links begin with (default: the host)")
