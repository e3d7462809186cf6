"""``python -m pipelines``: the pipeline in a cluster (compile, submit, schedule) or here (run)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from percmae.command import exit_code, parse
from percmae.errors import UserError
from pipelines.actions import add_actions

_RUN = """\
Run the whole pipeline on this machine: sample images, an embedded S3 server, and the same KFP
pipeline that runs in a cluster. Ends with a table and the path of an HTML report.

What is finished and unchanged is reused. Ctrl-C saves what is being trained; the same command goes
on from there. Another configuration needs another --tag."""

_RUN_EXAMPLES = """\
examples:
  percmae run
  percmae run --variant ssim --tag try1 optim.epochs=3
  percmae run --source my-images/ --seeds 0 probe.optim.epochs=20 all.data.workers=2

key=value is a setting of the pretraining, or with probe., finetune. or all. in front of that stage;
`percmae config show --docs` explains them all."""


_COMPARE = """\
Run the whole pipeline for one variant after the other, on the same images with the same seeds and
settings, and put what they learned side by side: a table, and a picture.

What is finished and unchanged is reused, also what `percmae run` has made with the same tag. When a
variant fails, the others go on. Ctrl-C saves what is being trained; the same command goes on from
there."""

_COMPARE_EXAMPLES = """\
examples:
  percmae compare
  percmae compare --variants mae,ssim --seeds 0 --tag quick optim.epochs=3

key=value is a setting of every variant's pretraining, or with probe., finetune. or all. in front of
that stage; `percmae config show --docs` explains them all."""


def _run(args: argparse.Namespace) -> None:
    from percmae.report import summary_table
    from pipelines.local.run import run, steps_table

    outcome = run(args.variant, **_settings(args))
    print(summary_table(outcome.report))
    print()
    print(steps_table(outcome.steps))
    print()
    print(outcome.html)


def _compare(args: argparse.Namespace) -> None:
    from percmae.report.compare_text import compare_table
    from pipelines.local.compare import compare, failures

    document = compare(args.variants, **_settings(args))
    print(compare_table(document))
    print()
    print(*document["files"].values(), sep="\n")
    failures(document)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What ``run`` and ``compare`` take alike."""
    from percmae.stages.placement import Placement

    names = "tag recipe source seeds overrides to size fine_tune store archives dataset"
    placement = Placement(args.launcher, args.train_image, args.nodes, args.gpus, args.job)
    return {name: getattr(args, name) for name in names.split()} | {"placement": placement}


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers such as 0,1,2"
        ) from None


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, work: Callable[[argparse.Namespace], None], **kw: Any) -> Any:
        sub = actions.add_parser(name, help=text, **{"description": text, **kw})
        sub.set_defaults(work=work, parser=sub)
        return sub

    add_actions(action)

    sub = action(
        "run",
        "Run the pipeline on this machine.",
        _run,
        prog="percmae run",
        usage="percmae run [options] [key=value …]",
        description=_RUN,
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--variant", default="mae", metavar="V", help="objective (default: mae)")
    _pipeline_options(sub)

    sub = action(
        "compare",
        "Run the pipeline for several variants and compare them.",
        _compare,
        prog="percmae compare",
        usage="percmae compare [options] [key=value …]",
        description=_COMPARE,
        epilog=_COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        metavar="V,…",
        help="which, in the order of the table (default: all)",
    )
    _pipeline_options(sub)
    return parser


def _pipeline_options(sub: argparse.ArgumentParser) -> None:
    """What running the pipeline takes, for one variant or several."""
    sub.set_defaults(overrides=[])
    sub.add_argument("--tag", default="", help="experiment tag; runs are named <tag>_<variant>")
    sub.add_argument("--recipe", default="demo", metavar="R", help="default: demo")
    sub.add_argument("--size", default="", metavar="S", help="encoder: tiny, small, base …")
    sub.add_argument(
        "--source",
        default="mnist",
        metavar="NAME|DIR",
        help="images, as for `percmae sample-data` (default: mnist)",
    )
    sub.add_argument(
        "--seeds", type=_seeds, default=[0, 1, 2], metavar="N,…", help="default: 0,1,2"
    )
    sub.add_argument(
        "--no-fine-tune", dest="fine_tune", action="store_false", help="probe only: quicker"
    )
    sub.add_argument("--to", default="runs", metavar="DIR", help="where reports go (default: runs)")
    sub.add_argument(
        "--store",
        metavar="URI",
        help="keep datasets and runs there (s3://… or a folder), not in the embedded server",
    )
    sub.add_argument(
        "--archives",
        metavar="URI",
        help="folder or s3:// prefix of the ILSVRC archives, instead of sample images",
    )
    sub.add_argument("--dataset", metavar="NAME", help="name the dataset is kept under")
    _placement_options(sub.add_argument_group("where the training is done"))


def _placement_options(sub: Any) -> None:
    sub.add_argument(
        "--launcher",
        default="local",
        metavar="L",
        help="local (default), or by jobs in a cluster: pytorchjob, trainjob, job",
    )
    sub.add_argument(
        "--train-image", default="", metavar="IMAGE", help="of the jobs (default: percmae's own)"
    )
    sub.add_argument("--nodes", type=int, default=1, metavar="N", help="pods of a training")
    sub.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of each pod")
    sub.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further job setting, such as memory=64Gi or probe.nodes=1 (may be repeated)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code (percmae.errors says what they mean)."""
    args = parse(_parser("python -m pipelines"), sys.argv[1:] if argv is None else argv)
    try:
        return exit_code(lambda: args.work(args))
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("kfp"):
            raise
        message = "percmae: error: the pipeline needs kfp: pip install 'percmae[pipelines]'"
        print(message, file=sys.stderr)
        return UserError.exit_code


if __name__ == "__main__":
    sys.exit(main())
