"""``python -m pipelines``: the pipeline in a cluster (compile, submit, schedule) or here (run)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from percmae.cli.parser import add_presets, add_variant
from percmae.command import exit_code, parse
from percmae.errors import UserError
from percmae.stages.placement import Placement
from pipelines.actions import add_actions
from pipelines.local.options import RetrainOptions, RunOptions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Chosen = TypeVar("Chosen", RunOptions, RetrainOptions)

_RUN = """\
Run the whole pipeline on this machine: sample images, an embedded S3 server, and the same KFP
pipeline that runs in a cluster. Ends with a table and the path of an HTML report.

What is finished and unchanged is reused. Ctrl-C saves what is being trained; the same command goes
on from there. Another configuration needs another --tag."""

_RUN_EXAMPLES = """\
examples:
  percmae run
  percmae run --variant ssim --tag try1 pretrain.optim.epochs=3
  percmae run --images photos/ --seeds 0 data.workers=2 probe.optim.epochs=20

"""

_COMPARE = """\
Run the whole pipeline for one variant after the other, on the same images with the same seeds and
settings, and put what they learned side by side: a table, and a picture.

What is finished and unchanged is reused, also what `percmae run` has left with the same tag. When a
variant fails, the others go on. Ctrl-C saves what is being trained; the same command goes on from
there."""

_COMPARE_EXAMPLES = """\
examples:
  percmae compare
  percmae compare --variants mae,ssim --seeds 0 --tag quick optim.epochs=3

"""

_RETRAIN = """\
Look for new or changed images in a source. Where there are any: ingest them, pretrain, fine-tune,
evaluate, add the classifier to the model as challenger, and promote it if it is better than the
champion by the rule. Where there are none, end at once.

Validation and test stay as they are. What is finished is reused; the same command goes on from
where one was stopped. PERCMAE_WEBHOOK is told what was decided."""

_RETRAIN_EXAMPLES = """\
examples:
  percmae retrain --images photos/ --model photos
  percmae retrain --images s3://bucket/photos --model photos --store s3://bucket --start afresh \\
                  --rule min_gain=0.01 --rule level=0.01 pretrain.optim.epochs=3

"""

_SETTINGS = """\
key=value is a setting of every stage that has it; with pretrain., probe. or finetune. in front, of
that stage alone, where it wins. Job settings (--job) likewise. `percmae config show --docs`
explains them all."""


# Both import their work when they do it: --help shows none of it.
def _run(args: argparse.Namespace) -> None:
    from percmae.report import summary_table
    from pipelines.local.run import run, steps_table

    outcome = run(args.variant, _options(args, RunOptions))
    print(summary_table(outcome.report))
    print()
    print(steps_table(outcome.steps))
    print()
    print(outcome.html)


def _compare(args: argparse.Namespace) -> None:
    from percmae.report.compare_text import compare_table
    from pipelines.local.compare import compare, failures

    document = compare(args.variants, _options(args, RunOptions))
    print(compare_table(document))
    print()
    print(*document["files"].values(), sep="\n")
    failures(document)


def _retrain(args: argparse.Namespace) -> None:
    from pipelines.local.retrain import retrain

    outcome = retrain(_options(args, RetrainOptions))
    print(outcome.why)
    if outcome.html is not None:
        print(outcome.html)


def _options(args: argparse.Namespace, cls: type[Chosen]) -> Chosen:
    placement = Placement(args.launcher, args.train_image, args.nodes, args.gpus, args.job)
    names = [field.name for field in dataclasses.fields(cls) if field.name != "placement"]
    return cls(placement=placement, **{name: getattr(args, name) for name in names})


def _defaults(cls: type[DataclassInstance]) -> dict[str, Any]:
    """What holds where nothing is said, of the options that need not be given."""
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers such as 0.01,0.1,1"
        ) from None


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
        **_here("run", _RUN, _RUN_EXAMPLES),
    )
    add_variant(sub)
    _add_options(sub)

    sub = action(
        "compare",
        "Run the pipeline for several variants and compare them.",
        _compare,
        **_here("compare", _COMPARE, _COMPARE_EXAMPLES),
    )
    sub.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        metavar="V,…",
        help="which, in the order of the table (default: all)",
    )
    # For each of the variants: what is told of the method's label efficiency is `run`'s to tell.
    _add_options(sub, label_fractions=(1.0,))

    sub = action(
        "retrain",
        "Learn what is new and keep the better model, on this machine.",
        _retrain,
        **_here("retrain", _RETRAIN, _RETRAIN_EXAMPLES),
    )
    _add_retrain(sub)
    return parser


def _here(verb: str, description: str, examples: str) -> dict[str, Any]:
    """What the parsers of the verbs of ``percmae`` that are carried out here have in common."""
    return {
        "prog": f"percmae {verb}",
        "usage": f"percmae {verb} [options] [key=value …]",
        "description": description,
        "epilog": examples + _SETTINGS,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add_options(sub: argparse.ArgumentParser, **defaults: Any) -> None:
    """The options that make RunOptions, some with defaults of the verb's own."""
    usual = _defaults(RunOptions)
    sub.set_defaults(**{**usual, **defaults})
    add_presets(sub, usual["recipe"])
    sub.add_argument(
        "--source",
        metavar="NAME|DIR",
        help="images, as for `percmae sample-data` (default: fashion-mnist, or mnist, said in "
        "capitals, where it cannot be had)",
    )
    seeds = ",".join(map(str, usual["seeds"]))
    sub.add_argument("--seeds", type=_seeds, metavar="N,…", help=f"default: {seeds}")
    sub.add_argument(
        "--no-fine-tune", dest="fine_tune", action="store_false", help="probe only: quicker"
    )
    fractions = ",".join(f"{fraction:g}" for fraction in sub.get_default("label_fractions"))
    sub.add_argument(
        "--label-fractions",
        type=_fractions,
        metavar="F,…",
        help=f"shares of the labels to fine-tune on, also from scratch (default: {fractions})",
    )
    sub.add_argument("--to", metavar="DIR", help="where reports go (default: %(default)s)")
    text = "your own, instead: a folder, a table, archives or shards, as percmae ingest takes them"
    sub.add_argument("--images", metavar="URI", help=text)
    text = "of these: auto (default: folders one deep are classes), folders, or none"
    sub.add_argument("--labels", metavar="HOW", help=text)
    text = "or ILSVRC's: folder or s3:// prefix of its archives"
    sub.add_argument("--archives", metavar="URI", help=text)
    _add_places(sub)


def _add_retrain(sub: argparse.ArgumentParser) -> None:
    """The options that make RetrainOptions."""
    usual = _defaults(RetrainOptions)
    sub.set_defaults(**usual)
    text = "a folder, a table, archives or shards, as percmae ingest takes them"
    sub.add_argument("--images", required=True, metavar="URI", help=text)
    text = "of these: auto (default: folders one deep are classes) or folders"
    sub.add_argument("--labels", metavar="HOW", help=text)
    text = "name of the model, kept in the store at models/<name>"
    sub.add_argument("--model", required=True, metavar="NAME", help=text)
    text = "where pretraining begins: champion (its weights; default) or afresh"
    sub.add_argument("--start", metavar="S", help=text)
    text = "when a challenger is promoted (may be repeated); `percmae config show --docs`"
    sub.add_argument("--rule", action="append", default=[], metavar="KEY=VALUE", help=text)
    add_variant(sub)
    add_presets(sub, usual["recipe"])
    sub.add_argument("--seed", type=int, metavar="N", help="default: %(default)s")
    text = "cron fields by which this is started, to tell of starts that were missed"
    sub.add_argument("--schedule", metavar="FIELDS", help=text)
    text = "where log and decision go (default: %(default)s)"
    sub.add_argument("--to", metavar="DIR", help=text)
    _add_places(sub)


def _add_places(sub: argparse.ArgumentParser) -> None:
    """Where things are kept, and the training is done."""
    sub.add_argument(
        "--store",
        metavar="URI",
        help="keep datasets and runs there (s3://… or a folder), not in the embedded server",
    )
    sub.add_argument("--dataset", metavar="NAME", help="name the dataset is kept under")
    _add_placement(sub.add_argument_group("where the training is done"), Placement())


def _add_placement(group: Any, default: Placement) -> None:
    group.add_argument(
        "--launcher",
        default=default.launcher,
        metavar="L",
        help="%(default)s (default), or by jobs in a cluster: pytorchjob, trainjob, job",
    )
    group.add_argument(
        "--train-image",
        default=default.image,
        metavar="IMAGE",
        help="of the jobs (default: percmae's own)",
    )
    group.add_argument(
        "--nodes", type=int, default=default.nodes, metavar="N", help="pods of a training"
    )
    group.add_argument(
        "--gpus", type=int, default=default.gpus, metavar="N", help="GPUs of each pod"
    )
    group.add_argument(
        "--job",
        action="append",
        default=list(default.job),
        metavar="KEY=VALUE",
        help="a further job setting, such as memory=64Gi or probe.memory=8Gi (may be repeated)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code (percmae.errors says what they mean)."""
    return exit_code(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> None:
    args = parse(_parser("python -m pipelines"), arguments)
    try:
        args.work(args)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("kfp"):
            raise
        raise UserError("the pipeline needs kfp: pip install 'percmae[pipelines]'") from None


if __name__ == "__main__":
    sys.exit(main())
