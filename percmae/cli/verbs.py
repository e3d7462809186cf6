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
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from percmae.cli import checkpoints, datasets, gc, models, using
from percmae.cli.parser import build_parser
from percmae.command import exit_code, parse
from percmae.engine.place import copies, find_place
from percmae.errors import UserError

if TYPE_CHECKING:
    from percmae.config import Config


def _sample_data(args: argparse.Namespace) -> None:
    from percmae.data.archives import ARCHIVES
    from percmae.data.sample import make_sample_archives, put_sample_archives
    from percmae.storage import StorePath

    out = StorePath(args.out)
    if out.is_s3:
        put_sample_archives(out, args.source)
    else:
        make_sample_archives(args.out, args.source)
    print(*((out / name).uri for name in ARCHIVES.values()), sep="\n")


def _put(args: argparse.Namespace) -> None:
    from percmae.storage.put import put

    print(*put(args.files, args.to, args.force), sep="\n")


def _ingest(args: argparse.Namespace) -> None:
    from percmae.ingest.verb import Asked, ingest, ingest_share
    from percmae.progress import note

    asked: Asked = {name: getattr(args, name) for name in Asked.__annotations__}  # type: ignore[assignment]
    result = ingest(**asked) if args.of is None else ingest_share(args.of, **asked)
    if result is None:
        return
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

    _trained(pretrain(config, args.data, args.to, args.resume).uri)


def _downstream(args: argparse.Namespace) -> None:
    from percmae.runs.downstream import downstream_config
    from percmae.stages.parent import parent_of

    parent = parent_of(args.run)
    config = downstream_config(
        parent, args.verb, args.recipe, args.config, args.overrides, args.tag, args.features
    )
    _spread_over_gpus(config)
    from percmae.engine import finetune

    work = finetune.probe if args.verb == "probe" else finetune.finetune
    _trained(work(config, parent, args.data, args.to, args.resume, args.features).uri)


def _evaluate(args: argparse.Namespace) -> None:
    from percmae.engine.evaluate import evaluate

    document = evaluate(args.run, args.data).evaluation.model_dump(mode="json")
    if args.json:
        print(json.dumps(document))
        return
    if "reconstruction" in document:
        figures = document["reconstruction"]
        for part in ("rank", "knn"):
            told = document.get(part, {})
            figures |= {f"{part}_{name}": value for name, value in told.items()}
    else:
        figures = {name: document[name] for name in ("top1", "top5", "loss", "ece")}
    for name, value in figures.items():
        print(f"{name:18} {value:.4f}" if isinstance(value, float) else f"{name:18} {value}")


def _reconstruct(args: argparse.Namespace) -> None:
    from percmae.engine.evaluate import reconstruct

    reconstruct(args.run, args.images, args.to)
    print(args.to)


def _report(args: argparse.Namespace) -> None:
    from percmae.report import PAGE, report, summary_table

    if args.index:
        from percmae.stages.index import index

        print(index(args.index, args.to)["files"]["html"])
        return
    if args.to is None:
        raise UserError("report --runs: say where with --to")
    print(summary_table(report(args.runs, args.to)))
    print(f"{args.to.rstrip('/')}/{PAGE}")


def _import(args: argparse.Namespace) -> None:
    from percmae.engine.formats import import_weights

    written = import_weights(args.weights, args.to, args.kind, args.force)
    print(written.uri, f"sha256:{written.sha256}", written.settings, sep="\n")


def _submit(args: argparse.Namespace) -> None:
    from percmae.cli.submit import work_of
    from percmae.jobs.settings import job_settings

    work = work_of(args.command)
    settings = job_settings(args.job, work.stage)
    if args.print:
        import yaml

        from percmae.jobs.spec import job_object

        print(yaml.safe_dump(job_object(work, settings), sort_keys=False), end="")
        return
    from percmae.jobs.launcher import launch, submit

    if args.detach:
        print(submit(work, settings))
        return
    launch(work, settings)
    print(work.name)


def _store(args: argparse.Namespace) -> None:
    from percmae.local_store import server as local_store

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


def _config(args: argparse.Namespace) -> None:
    (_config_show if args.action == "show" else _config_diff)(args)


def _config_show(args: argparse.Namespace) -> None:
    from percmae.cli.settings_docs import settings_docs
    from percmae.config import load

    if args.docs:
        print(settings_docs())
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
    from percmae.config.load import config_from_dict
    from percmae.plain import read_yaml
    from percmae.runs.record import CONFIG
    from percmae.storage import StorePath

    path = StorePath(uri)
    file = path if path.name.endswith((".yaml", ".yml")) else path / CONFIG
    if not file.exists():
        raise UserError(f"{file}: there is no such file; give a run or a saved config.yaml")
    values = read_yaml(file.read_bytes(), str(file))
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a saved configuration")
    return config_from_dict(values)


def _bench(args: argparse.Namespace) -> None:
    if args.action != "step":
        (_bench_loader if args.action == "loader" else _bench_checkpoint)(args)
        return
    from percmae.bench import step

    document = step.bench(
        sizes=args.size.split(","),
        variants=args.variants.split(",") if args.variants else None,
        batch=args.batch,
        rounds=args.rounds,
        precision=args.precision,
        compiled=args.compile,
        overrides=args.overrides,
    )
    print(json.dumps(document) if args.json else step.table(document))


def _bench_loader(args: argparse.Namespace) -> None:
    from percmae.bench import loader

    with _store_of_a_bench() as store:
        document = loader.bench(
            store,
            photos=args.photos,
            count=args.images,
            rounds=args.rounds,
            cores=args.cores,
            only=args.only.split(",") if args.only else None,
        )
    print(json.dumps(document) if args.json else loader.table(document))


def _bench_checkpoint(args: argparse.Namespace) -> None:
    from percmae.bench import checkpoint

    with _store_of_a_bench() as store:
        document = checkpoint.bench(store, args.size.split(","), args.rounds, args.overrides)
    print(json.dumps(document) if args.json else checkpoint.table(document))


@contextmanager
def _store_of_a_bench() -> Iterator[str]:
    """The URI of an embedded store that the environment describes, gone afterwards."""
    from percmae.local_store import server

    with (
        tempfile.TemporaryDirectory(prefix="percmae-bench-") as folder,
        server.running(Path(folder)) as store,
        store.in_environment(),
    ):
        yield store.uri


def _doctor(args: argparse.Namespace) -> None:
    if args.cluster:
        from percmae.doctor.cluster import doctor_cluster

        fine = doctor_cluster(args.namespace, args.kfp, args.overrides, args.store, args.timeout)
    elif args.namespace or args.kfp or args.overrides:
        raise UserError("--namespace, --kfp and job settings are about a cluster: add --cluster")
    else:
        from percmae.doctor.machine import doctor

        fine = doctor()
    if not fine:
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


def _trained(uri: str) -> None:
    """Print a run's URI once, however many processes have trained it."""
    place = find_place()
    if place is None or place.rank == 0:
        print(uri, flush=True)


def _spread_over_gpus(config: Config) -> None:
    """Start over under torchrun, one process a GPU, when all GPUs are to be used."""
    if find_place() is not None or config.trainer.devices != -1:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 1:
        launcher = ["-m", "percmae.engine.torchrun", "--standalone", f"--nproc-per-node={count}"]
        os.execv(sys.executable, [sys.executable, *launcher, "--", *sys.argv[1:]])


def _refuse_copies(verb: str) -> None:
    """Several processes share a training; of anything else they would each do the whole."""
    number = 1 if verb in _SHARED else copies()
    if number > 1:
        raise UserError(
            f"{verb} is the work of one process, and this is one of {number}: start it once, "
            "without torchrun or mpirun; under SLURM by srun --ntasks=1"
        )


_WORK: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "compare": _run,
    "retrain": _run,
    "sample-data": _sample_data,
    "put": _put,
    "ingest": _ingest,
    "datasets": datasets.work,
    "models": models.work,
    "pretrain": _pretrain,
    "finetune": _downstream,
    "probe": _downstream,
    "checkpoints": checkpoints.work,
    "gc": gc.work,
    "evaluate": _evaluate,
    "reconstruct": _reconstruct,
    "predict": using.predict,
    "embed": using.embed,
    "report": _report,
    "export": using.export,
    "import": _import,
    "submit": _submit,
    "store": _store,
    "config": _config,
    "bench": _bench,
    "doctor": _doctor,
}

# Trainings share their work; the rest only looks.
_SHARED = ("pretrain", "finetune", "probe", "checkpoints", "config", "datasets", "doctor")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return exit_code(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> None:
    if arguments and _WORK.get(arguments[0]) is _run:
        # All that follows belongs to the pipeline's own parser, --help included.
        args = argparse.Namespace(verb=arguments[0], rest=arguments[1:])
    else:
        args = parse(build_parser(), arguments)
    _refuse_copies(args.verb)
    _WORK[args.verb](args)


def entry() -> NoReturn:
    """The console script."""
    raise SystemExit(main())
