"""The command line's verbs and options, without what they do: see ``percmae.cli.verbs``."""

from __future__ import annotations

import argparse
from typing import Any

from percmae import __version__
from percmae.cli import checkpoints, datasets, gc, models, using
from percmae.cli.actions import described
from percmae.data.addresses import joined
from percmae.jobs.names import BUCKET

_ABOUT = """\
Perceptual MAE: self-supervised vision pretraining as a pipeline.

A URI is s3://bucket/key or a path, everywhere. The store's address and keys come from
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as AWS tools find them (profiles,
roles); `percmae doctor` says which keys are used."""

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

exit codes: 0 done, 1 failure, 2 bad usage, input or surroundings, 128 and above to be begun again,
which goes on where it stopped: 128 + the number of a signal, 138 a process was lost, 140 the store
was away for too long. PERCMAE_DEBUG=1 shows tracebacks."""

_OVERRIDES = "settings such as optim.epochs=3; `percmae config show --docs` explains them all"


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``verb`` (and ``action``, for verbs with several) say what was asked for."""
    parser = argparse.ArgumentParser(
        prog="percmae",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"percmae {__version__}")
    # The long metavar also makes argparse leave room for the longest verb on its line.
    verbs = parser.add_subparsers(dest="verb", metavar="VERB [options]", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return described(verbs, name, text)

    for name, text in (
        ("run", "run the whole pipeline on this machine, on real images"),
        ("compare", "run the pipeline for several variants and compare them"),
    ):
        sub = verb(name, text)
        sub.add_argument("rest", nargs=argparse.REMAINDER, help=f"see `percmae {name} --help`")

    sub = verb("sample-data", "write real images as small ILSVRC archives")
    sub.add_argument("--out", required=True, metavar="URI", help="where the archives go")
    sub.add_argument(
        "--source",
        default="fashion-mnist",
        metavar="NAME|DIR",
        help="fashion-mnist (default), mnist, cifar10, imagenette, or a class-per-folder directory",
    )

    sub = verb("put", "bring files of this machine, such as archives, into the store")
    sub.add_argument("files", nargs="+", metavar="FILE", help="kept under its own name")
    sub.add_argument("--to", required=True, metavar="URI", help="folder in the store")
    text = "also where one of the same name is there"
    sub.add_argument("--force", action="store_true", help=text)

    _ingest(verb("ingest", "turn images, or ILSVRC archives, into a dataset of shards"))
    datasets.options(verb("datasets", "look at datasets, compare them, and tidy them up"))

    models.options(
        verb("models", "models with a name: versions of runs, and which of them is in use")
    )

    sub = verb("pretrain", "pretrain a masked autoencoder")
    _config_options(sub)
    _training(sub, "never", "; given several times: all of them, as one dataset")

    for name, text in (
        ("finetune", "fine-tune a pretrained encoder on the labels"),
        ("probe", "train a linear layer on a frozen pretrained encoder"),
    ):
        sub = verb(name, text)
        text = "the pretraining run, or a file of weights (official MAE, timm, Hugging Face, ours)"
        sub.add_argument("--run", required=True, metavar="URI", help=text)
        sub.add_argument("--recipe", metavar="NAME", help="default: the run's own; of a file mae")
        sub.add_argument("--tag", help="default: the run's own; of a file its name")
        sub.add_argument("--config", metavar="FILE", help="YAML with further settings")
        _training(sub, "auto")
        if name == "probe":
            sub.add_argument(
                "--features",
                default="pretrained",
                choices=["pretrained", "untrained", "pixels"],
                help="of the pretrained encoder (default), or of a control: the encoder before its "
                "pretraining, or the image's own pixels",
            )
        else:
            sub.add_argument(
                "--untrained",
                dest="features",
                action="store_const",
                const="untrained",
                default="pretrained",
                help="the control: the same from scratch, from the weights pretraining began with",
            )

    checkpoints.options(
        verb("checkpoints", "look at a run's checkpoints, check them, and tidy them up")
    )

    gc.options(verb("gc", "list, or delete, runs, datasets and reports that nothing refers to"))

    sub = verb("evaluate", "figures of a finished run on the test set")
    sub.add_argument("--run", required=True, metavar="URI", help="any finished run")
    _data(sub)
    sub.add_argument("--json", action="store_true", help="one JSON document on stdout")

    sub = verb("reconstruct", "show what a pretrained model makes of images")
    sub.add_argument("--run", required=True, metavar="URI", help="the pretraining run")
    sub.add_argument("--images", required=True, nargs="+", metavar="FILE", help="image files")
    sub.add_argument("--to", required=True, metavar="FILE.png", help="the picture to write")

    using.predict_options(verb("predict", "say what is on images, by a registered model"))
    using.embed_options(verb("embed", "write the features of images by a pretrained encoder"))

    sub = verb("report", "write the HTML report of finished runs, or the index of a store")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", nargs="+", metavar="URI", help="runs of any stage")
    text = "all models, runs and reports below a folder or prefix, as a page to sort"
    what.add_argument("--index", metavar="URI", help=text)
    text = "folder of report.html and .json (of an index, by default where it looks)"
    sub.add_argument("--to", metavar="URI", help=text)

    using.export_options(verb("export", "write weights, or a model, for other tools"))

    sub = verb("import", "check weights key by key and write them as safetensors")
    text = "torch or safetensors file; no code in it is run"
    sub.add_argument("--weights", required=True, metavar="URI", help=text)
    kinds = ["mae", "vgg16", "dalle", "efficientnet_lite0"]
    text = "mae (default): for model.init_from; the others: feature networks"
    sub.add_argument("--kind", default="mae", choices=kinds, help=text)
    _written(sub)

    _submit(verb("submit", "have a job in a cluster do what another verb does"))

    sub = verb("store", "the embedded S3 server of a machine without one")
    sub.add_argument("action", choices=["up", "down", "status"])

    sub = verb("config", "show or compare configurations")
    actions = sub.add_subparsers(dest="action", required=True, metavar="show|diff")
    show = actions.add_parser("show", help="the effective configuration")
    _config_options(show)
    show.add_argument(
        "--stage", default="pretrain", metavar="S", help="pretrain (default), finetune or probe"
    )
    show.add_argument("--origin", action="store_true", help="where each value came from")
    show.add_argument("--docs", action="store_true", help="what each setting means")
    _overrides(show)
    diff = actions.add_parser("diff", help="what differs between two runs or saved configs")
    diff.add_argument("left", metavar="URI")
    diff.add_argument("right", metavar="URI")

    _bench(verb("bench", "measure how fast this machine trains"))

    _doctor(verb("doctor", "check this machine, or a cluster, for what is missing"))
    return parser


def _doctor(sub: argparse.ArgumentParser) -> None:
    text = "look at the cluster of KUBECONFIG, not at this machine"
    sub.add_argument("--cluster", action="store_true", help=text)
    text = "where jobs run (default: percmae, with --kfp kubeflow)"
    sub.add_argument("--namespace", metavar="NS", help=text)
    text = "beside Kubeflow Pipelines: with its store, secret and accounts"
    sub.add_argument("--kfp", action="store_true", help=text)
    text = f"the bucket a pod must reach (default: as the store's ConfigMap says, else {BUCKET})"
    sub.add_argument("--store", metavar="URI", help=text)
    text = "for each thing that is tried in the cluster (default: 180)"
    sub.add_argument("--timeout", metavar="SECONDS", type=float, default=180.0, help=text)
    _overrides(sub)
    sub.epilog = "key=value: job settings such as image=registry/name@sha256:… or queue=research"


def _bench(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(dest="action", required=True, metavar="step|loader|checkpoint")
    loader = actions.add_parser(
        "loader",
        help="images a second of the loader, beside those of others",
        description="Measure how many images a second are read from an S3 server of this machine, "
        "decoded and cropped, by our loader in each of its modes and by those of others that are "
        "installed (pip install 'percmae[bench]').",
    )
    loader.add_argument("--photos", metavar="DIR", help="JPEGs (default: those of scikit-image)")
    loader.add_argument("--images", type=int, default=1000, metavar="N", help="of an epoch")
    loader.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each")
    loader.add_argument(
        "--cores", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2"
    )
    loader.add_argument("--only", metavar="NAME,…", help="which (default: all)")
    loader.add_argument("--json", action="store_true", help="one JSON document on stdout")
    checkpoint = actions.add_parser(
        "checkpoint",
        help="what a checkpoint costs the training, and when it is in the store",
        description="Measure how long a checkpoint of a whole masked autoencoder with its "
        "optimiser's moments stops the training, when it is on disk and when in an S3 server of "
        "this machine, beside torch.distributed.checkpoint.",
    )
    checkpoint.add_argument(
        "--size", default="base,large", metavar="S,…", help="default: %(default)s"
    )
    checkpoint.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="checkpoints of each"
    )
    checkpoint.add_argument("--json", action="store_true", help="one JSON document on stdout")
    _overrides(checkpoint)
    step = actions.add_parser(
        "step",
        help="seconds and memory of a training step of each variant",
        description="Measure one training step of each variant, side by side in one run, beside "
        "the time that this machine's matrix multiplication would need for it.",
    )
    step.add_argument("--variants", metavar="V,…", help="which (default: all)")
    step.add_argument("--size", default="base,tiny", metavar="S,…", help="default: base,tiny")
    step.add_argument("--batch", type=int, metavar="N", help="default: 16, on a GPU 64")
    step.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each")
    step.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16"],
        help="auto: bf16 on a GPU, fp32 on a CPU",
    )
    step.add_argument("--compile", action="store_true", help="also with torch.compile")
    step.add_argument("--json", action="store_true", help="one JSON document on stdout")
    _overrides(step)


def _submit(sub: argparse.ArgumentParser) -> None:
    sub.description = (
        "Have a job in a cluster do what another verb does here, and follow it: its log, its end, "
        "its exit code. The same command again follows a job that is under way. Ctrl-C stops the "
        "job; the checkpoints stay."
    )
    sub.usage = "percmae submit [--job KEY=VALUE …] [--detach | --print] VERB [its options]"
    sub.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="kind=pytorchjob, image=…, nodes=2, gpus=8, memory=64Gi and so on (may be repeated); "
        "`percmae config show --docs` explains them all",
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="leave once the job is in the cluster")
    how.add_argument("--print", action="store_true", help="print the job as YAML, touch no cluster")
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="VERB …", help="what to do")


def add_variant(sub: argparse.ArgumentParser) -> None:
    """The option for one variant."""
    sub.add_argument("--variant", default="mae", metavar="V", help="objective (default: mae)")


def add_presets(sub: argparse.ArgumentParser, recipe: str = "mae") -> None:
    """The options for what a variant is trained with; ``recipe`` is the default."""
    sub.add_argument(
        "--recipe",
        default=recipe,
        metavar="R",
        help="optimiser and schedule: mae (the MAE paper's), reference (the Perceptual MAE "
        "authors'), demo (small and quick); default: %(default)s",
    )
    sub.add_argument("--size", metavar="S", help="encoder: tiny, small, base, large or huge")
    sub.add_argument("--tag", help="experiment tag; the run is named <tag>_<variant>")


def _ingest(sub: argparse.ArgumentParser) -> None:
    text = "a folder or prefix, a table (csv, jsonl, parquet), tar or zip archives, or shards"
    sub.add_argument("--images", metavar="URI", help=text)
    for name, text in (
        ("train", "instead: ILSVRC's tar of class tars,"),
        ("val", "its tar of validation images, used as the test set,"),
        ("devkit", "and its devkit's tar.gz, with classes and labels"),
    ):
        sub.add_argument(f"--{name}", metavar="URI", help=text)
    sub.add_argument("--to", required=True, metavar="URI", help="folder of the dataset")
    text = "auto (default: folders one deep are classes), folders (the first is), or none"
    sub.add_argument("--labels", default="auto", metavar="HOW", help=text)
    text = "image formats that are opened (default: as setting data.formats); others are left out"
    sub.add_argument("--formats", nargs="+", metavar="NAME", help=text)
    text = "of a shard, in bytes or such as 256M (default: 128M)"
    sub.add_argument("--shard-size", metavar="SIZE", help=text)
    text = "make larger images JPEGs whose shorter side has N pixels (default: keep all bytes)"
    sub.add_argument("--short-side", type=int, metavar="N", help=text)
    sub.add_argument("--quality", type=int, metavar="Q", help="of these JPEGs (default: 90)")
    text = "processes that build shards (default: one for each core)"
    sub.add_argument("--workers", type=int, metavar="N", help=text)
    text = "folder for images of archives on their way (default: that of temporary files)"
    sub.add_argument("--scratch", metavar="FOLDER", help=text)
    text = "most bytes there, such as 64G (at most and by default half of what is free); 0: none"
    sub.add_argument("--scratch-size", metavar="SIZE", help=text)
    text = "in an Indexed Job: its number of pods, which share the shards"
    sub.add_argument("--of", type=int, metavar="N", help=text)
    text = "validation and test take in new images, too, and those that were held back"
    sub.add_argument("--grow-held-out", action="store_true", help=text)
    text = "classes of the real ILSVRC may lack images: the train archive is a part of it"
    sub.add_argument("--subset", action="store_true", help=text)
    text = "read the ILSVRC archives as a whole first, to compare their published MD5"
    sub.add_argument("--md5", action="store_true", help=text)


def _config_options(sub: argparse.ArgumentParser) -> None:
    add_variant(sub)
    add_presets(sub)
    sub.add_argument("--config", metavar="FILE", help="YAML with further settings")


def _overrides(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(overrides=[])
    sub.usage = f"{sub.prog} [options] [key=value …]"
    sub.epilog = f"key=value: {_OVERRIDES}"


def _written(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", required=True, metavar="URI", help="the file to write")
    sub.add_argument("--force", action="store_true", help="replace a file that exists")


class _Manifests(argparse.Action):
    """An option that may be given several times: its values as one address."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, joined([earlier, values] if earlier else [values]))


def _data(sub: argparse.ArgumentParser, several: str = "") -> None:
    text = f"the dataset's manifest{several}"
    sub.add_argument("--data", required=True, metavar="MANIFEST", action=_Manifests, help=text)


def _training(sub: argparse.ArgumentParser, resume: str, several: str = "") -> None:
    _data(sub, several)
    sub.add_argument("--to", required=True, metavar="URI", help="folder that holds the runs")
    sub.add_argument(
        "--resume",
        default=resume,
        choices=["auto", "never"],
        help="auto: go on with, or reuse, a run of the same name, config and data; "
        f"never: refuse when the name is taken (default: {resume})",
    )
    _overrides(sub)
