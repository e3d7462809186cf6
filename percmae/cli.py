"""The ``percmae`` command: one verb a subcommand, each a function that can be imported as well.

Results go to stdout (the last line is what scripts read), progress and notes to stderr. Everything
heavy is imported by the verb that needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from percmae import __version__
from percmae.command import exit_code, parse
from percmae.errors import UserError

if TYPE_CHECKING:
    from percmae.config import Config

_ABOUT = """\
Perceptual MAE: self-supervised vision pretraining as a pipeline.

A URI is s3://bucket/key or a path, everywhere. The store's address and keys come from
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a file, see `percmae doctor`)."""

_EXAMPLES = """\
a first run, no cluster and no data needed:
  percmae run

the same by hand:
  percmae sample-data --out sample
  percmae ingest --train sample/ILSVRC2012_img_train.tar --val sample/ILSVRC2012_img_val.tar \\
                 --devkit sample/ILSVRC2012_devkit_t12.tar.gz --to datasets/sample
  percmae pretrain --data datasets/sample/manifest.json --to runs --recipe demo --tag first
  percmae probe --run runs/first_mae --data datasets/sample/manifest.json --to runs
  percmae evaluate --run runs/first_mae_probe --data datasets/sample/manifest.json

exit codes: 0 done, 1 failure, 2 bad usage or input, 128 and above interrupted and resumable
(128 + the signal's number)."""

_OVERRIDES = "settings such as optim.epochs=3; `percmae config show --docs` explains them all"


def _sample_data(args: argparse.Namespace) -> None:
    from percmae.data.sample import make_sample_archives

    archives = make_sample_archives(args.out, args.source)
    print(archives.train, archives.val, archives.devkit, sep="\n")


def _ingest(args: argparse.Namespace) -> None:
    from percmae.data.ingest import ingest
    from percmae.progress import note

    result = ingest(args.train, args.val, args.devkit, args.to)
    if result.reused:
        note(f"{result.manifest_uri}: unchanged, reused")
    print(result.manifest_uri)


def _pretrain(args: argparse.Namespace) -> None:
    from percmae.config import load_config

    config = load_config(
        args.variant, args.recipe, "pretrain", args.config, args.overrides, args.tag, args.size
    )
    _spread_over_gpus(config)
    from percmae.engine.pretrain import pretrain

    _result(pretrain(config, args.data, args.to, args.resume).uri)


def _downstream(args: argparse.Namespace) -> None:
    from percmae.engine import finetune

    config = finetune.downstream_config(
        args.run, args.verb, args.recipe, args.config, args.overrides, args.tag
    )
    _spread_over_gpus(config)
    common = (config, args.run, args.data, args.to, args.resume)
    if args.verb == "probe":
        _result(finetune.probe(*common, untrained=args.untrained).uri)
    else:
        _result(finetune.finetune(*common).uri)


def _evaluate(args: argparse.Namespace) -> None:
    from percmae.engine.evaluate import evaluate

    document = evaluate(args.run, args.data)
    if args.json:
        _result(json.dumps(document))
        return
    figures = document.get("reconstruction") or {
        name: document[name] for name in ("top1", "top5", "loss", "ece")
    }
    for name, value in figures.items():
        _result(f"{name:12} {value:.4f}" if isinstance(value, float) else f"{name:12} {value}")


def _reconstruct(args: argparse.Namespace) -> None:
    from percmae.engine.evaluate import reconstruct

    reconstruct(args.run, args.images, args.to)
    print(args.to)


def _report(args: argparse.Namespace) -> None:
    from percmae.report import report, summary_table

    print(summary_table(report(args.runs, args.to)))
    print(f"{args.to.rstrip('/')}/report.html")


def _export(args: argparse.Namespace) -> None:
    from percmae.engine.formats import export_weights

    written = export_weights(args.run, args.to, args.format, args.force)
    print(f"sha256:{written.sha256}", written.uri, sep="\n")


def _import(args: argparse.Namespace) -> None:
    from percmae.engine.formats import import_weights

    written = import_weights(args.weights, args.to, args.kind, args.force)
    print(written.uri, f"sha256:{written.sha256}", written.settings, sep="\n")


def _store(args: argparse.Namespace) -> None:
    from percmae import local_store

    if args.action == "down":
        local_store.down()
        return
    store = local_store.up() if args.action == "up" else local_store.status()
    if store is None:
        print("no embedded store is running; start one with `percmae store up`")
        return
    # Lines a shell can evaluate: eval "$(percmae store up)"
    print(f"export AWS_ENDPOINT_URL={store.endpoint}")
    print(f"export AWS_ACCESS_KEY_ID={store.access_key}")
    print(f"export AWS_SECRET_ACCESS_KEY={store.secret_key}")


def _config_show(args: argparse.Namespace) -> None:
    from percmae.config import load

    if args.docs:
        for key, kind, text in load.docs():
            print(f"{key}  ({kind})\n    {' '.join(text.split())}")
        return
    layers = load.load_layers(
        args.variant, args.recipe, args.stage, args.config, args.overrides, args.tag, args.size
    )
    values = load.leaves(layers.config)
    lines = {key: f"{key}={json.dumps(value)}" for key, value in values.items()}
    width = max(len(line) for line in lines.values()) if args.origin else 0
    if args.origin:
        for key, line in lines.items():
            print(f"{line:{width}}  # {layers.origin[key]}")
    else:
        print(load.to_yaml(layers.config), end="")
    print(f"# digest: {load.digest(layers.config)}")


def _config_diff(args: argparse.Namespace) -> None:
    from percmae.config.load import leaves

    left, right = (leaves(_stored_config(uri)) for uri in (args.left, args.right))
    for key in left:
        if left[key] != right[key]:
            print(f"{key}: {json.dumps(left[key])} → {json.dumps(right[key])}")


def _stored_config(uri: str) -> Config:
    import yaml

    from percmae.config.load import config_from_dict
    from percmae.storage import StorePath

    path = StorePath(uri)
    file = path if path.name.endswith((".yaml", ".yml")) else path / "config.yaml"
    if not file.exists():
        raise UserError(f"{file}: there is no such file; give a run or a saved config.yaml")
    try:
        return config_from_dict(yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, AttributeError):
        raise UserError(f"{file}: not a saved configuration") from None


def _doctor(args: argparse.Namespace) -> None:
    from percmae.doctor import doctor

    if not doctor():
        raise SystemExit(1)


def _run(args: argparse.Namespace) -> None:
    import subprocess

    # The DAG lives in the package above this one: it is started, not imported.
    command = [sys.executable, "-m", "pipelines", args.verb, *args.rest]
    child = subprocess.Popen(command)
    # Ctrl-C reaches the child too, which ends in its own way; this process waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    code = child.wait()
    raise SystemExit(code if code >= 0 else 128 - code)


def _result(line: str) -> None:
    """Print a result once, however many processes torchrun has started."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _spread_over_gpus(config: Config) -> None:
    """Start over under torchrun, one process a GPU, when all GPUs are to be used."""
    if "RANK" in os.environ or config.trainer.devices != -1:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, *launcher, "-m", "percmae", *sys.argv[1:]]
        os.execv(sys.executable, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="percmae",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"percmae {__version__}")
    # The long metavar also makes argparse leave room for the longest verb on its line.
    verbs = parser.add_subparsers(dest="verb", metavar="VERB [options]", required=True)

    def verb(name: str, text: str, work: Callable[[argparse.Namespace], None]) -> Any:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(work=work)
        return sub

    for name, text in (
        ("run", "run the whole pipeline on this machine, on real images"),
        ("compare", "run the pipeline for several variants and compare them"),
    ):
        sub = verb(name, text, _run)
        sub.add_argument("rest", nargs=argparse.REMAINDER, help=f"see `percmae {name} --help`")

    sub = verb("sample-data", "write real images as small ILSVRC archives", _sample_data)
    sub.add_argument("--out", required=True, metavar="DIR", help="where the archives go")
    sub.add_argument(
        "--source",
        default="mnist",
        metavar="NAME|DIR",
        help="mnist (default), fashion-mnist, cifar10, imagenette, or a class-per-folder directory",
    )

    sub = verb("ingest", "turn ILSVRC archives into a dataset of shards", _ingest)
    for name, text in (
        ("train", "the tar of class tars"),
        ("val", "the tar of validation images, used as the test set"),
        ("devkit", "the devkit's tar.gz, with classes and labels"),
    ):
        sub.add_argument(f"--{name}", required=True, metavar="URI", help=text)
    sub.add_argument("--to", required=True, metavar="URI", help="folder of the dataset")

    sub = verb("pretrain", "pretrain a masked autoencoder", _pretrain)
    _presets(sub)
    _training(sub, "never")

    for name, text in (
        ("finetune", "fine-tune a pretrained encoder on the labels"),
        ("probe", "train a linear layer on a frozen pretrained encoder"),
    ):
        sub = verb(name, text, _downstream)
        sub.add_argument("--run", required=True, metavar="URI", help="the pretraining run")
        sub.add_argument("--recipe", metavar="NAME", help="default: the run's own")
        sub.add_argument("--tag", help="default: the run's own")
        sub.add_argument("--config", metavar="FILE", help="YAML with further settings")
        _training(sub, "auto")
        if name == "probe":
            sub.add_argument(
                "--untrained",
                action="store_true",
                help="the control: the same probe on the encoder before its pretraining",
            )

    sub = verb("evaluate", "figures of a finished run on the test set", _evaluate)
    sub.add_argument("--run", required=True, metavar="URI", help="any finished run")
    sub.add_argument("--data", required=True, metavar="MANIFEST", help="the dataset's manifest")
    sub.add_argument("--json", action="store_true", help="one JSON document on stdout")

    sub = verb("reconstruct", "show what a pretrained model makes of images", _reconstruct)
    sub.add_argument("--run", required=True, metavar="URI", help="the pretraining run")
    sub.add_argument("--images", required=True, nargs="+", metavar="FILE", help="image files")
    sub.add_argument("--to", required=True, metavar="FILE.png", help="the picture to write")

    sub = verb("report", "write the HTML report of finished runs", _report)
    sub.add_argument("--runs", required=True, nargs="+", metavar="URI", help="runs of any stage")
    sub.add_argument("--to", required=True, metavar="URI", help="folder of report.html and .json")

    sub = verb("export", "write a run's weights to a file for other tools", _export)
    sub.add_argument("--run", required=True, metavar="URI", help="the pretraining run")
    text = "an official MAE checkpoint, the encoder for timm, or every tensor"
    sub.add_argument("--format", required=True, choices=["mae", "timm", "safetensors"], help=text)
    _written(sub)

    sub = verb("import", "check weights key by key and write them as safetensors", _import)
    text = "torch or safetensors file; no code in it is run"
    sub.add_argument("--weights", required=True, metavar="URI", help=text)
    kinds = ["mae", "vgg16", "dalle", "efficientnet_lite0"]
    text = "mae (default): for model.init_from; the others: feature networks"
    sub.add_argument("--kind", default="mae", choices=kinds, help=text)
    _written(sub)

    sub = verb("store", "the embedded S3 server of a machine without one", _store)
    sub.add_argument("action", choices=["up", "down", "status"])

    sub = verb("config", "show or compare configurations", _config_show)
    actions = sub.add_subparsers(dest="action", required=True, metavar="show|diff")
    show = actions.add_parser("show", help="the effective configuration")
    show.set_defaults(work=_config_show)
    _presets(show)
    show.add_argument("--stage", default="pretrain", choices=["pretrain", "finetune", "probe"])
    show.add_argument("--origin", action="store_true", help="where each value came from")
    show.add_argument("--docs", action="store_true", help="what each setting means")
    _overrides(show)
    diff = actions.add_parser("diff", help="what differs between two runs or saved configs")
    diff.set_defaults(work=_config_diff)
    diff.add_argument("left", metavar="URI")
    diff.add_argument("right", metavar="URI")

    verb("doctor", "check this machine: packages, devices, store", _doctor)
    return parser


def _presets(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--variant", default="mae", metavar="V", help="objective (default: mae)")
    sub.add_argument(
        "--recipe",
        default="mae",
        metavar="R",
        help="optimiser and schedule: mae (the MAE paper's, default), reference (the Perceptual "
        "MAE authors'), demo (small and quick)",
    )
    sub.add_argument("--size", metavar="S", help="encoder: tiny, small, base, large or huge")
    sub.add_argument("--tag", help="experiment tag; the run is named <tag>_<variant>")
    sub.add_argument("--config", metavar="FILE", help="YAML with further settings")


def _overrides(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(overrides=[])
    sub.usage = f"{sub.prog} [options] [key=value …]"
    sub.epilog = f"key=value: {_OVERRIDES}"


def _written(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", required=True, metavar="URI", help="the file to write")
    sub.add_argument("--force", action="store_true", help="replace a file that exists")


def _training(sub: argparse.ArgumentParser, resume: str) -> None:
    sub.add_argument("--data", required=True, metavar="MANIFEST", help="the dataset's manifest")
    sub.add_argument("--to", required=True, metavar="URI", help="folder that holds the runs")
    sub.add_argument(
        "--resume",
        default=resume,
        choices=["auto", "never"],
        help="auto: go on with, or reuse, a run of the same name, config and data; "
        f"never: refuse when the name is taken (default: {resume})",
    )
    _overrides(sub)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["run"], ["compare"]):
        # All that follows belongs to the pipeline's own parser, --help included.
        args = argparse.Namespace(work=_run, verb=arguments[0], rest=arguments[1:])
    else:
        args = parse(_parser(), arguments)
    try:
        return exit_code(lambda: args.work(args))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def entry() -> NoReturn:
    """The console script."""
    raise SystemExit(main())
