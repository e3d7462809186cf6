"""A pipeline of quick steps, run by ``kfp.local`` for real: what the tests of the runner watch.

As a program: ``python toy.py FOLDER`` runs three seeds that wait for a signal in their step.
"""

import io
import sys

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from percmae.errors import PercmaeError
from pipelines.local.console import Console
from pipelines.local.tasks import FinishedStep, fork_server, run_pipeline


@dsl.component(base_image="toy", install_kfp_package=False)
def ingest(folder: str, dataset: Output[Dataset]) -> None:
    import os
    import sys

    print("for the log only")
    print(f"endpoint {os.environ.get('AWS_ENDPOINT_URL')}", file=sys.stderr)
    with open(dataset.path, "w") as file:
        file.write("{}")
    dataset.metadata["reused"] = True


@dsl.component(base_image="toy", install_kfp_package=False)
def pretrain(
    folder: str, seed: int, mode: str, dataset: Input[Dataset], model: Output[Model]
) -> None:
    import os
    import pathlib
    import signal
    import sys
    import time

    def mark(text: str) -> None:
        part = pathlib.Path(folder) / f".{text}-{seed}"
        part.write_text(f"{os.getpid()} {time.time()}")
        part.rename(part.with_name(part.name[1:]))  # whole, also where the step is ended here

    mark("began")
    if mode == "fail" and seed == 1:
        print("percmae: error: seed 1 has no luck", file=sys.stderr)
        raise SystemExit(2)
    if mode == "away" and seed == 1:
        print("percmae: error: seed 1 has no store", file=sys.stderr)
        raise SystemExit(140)
    if mode == "crash" and seed == 1:
        raise ValueError("odd")
    if mode in ("wait", "fail", "away", "crash"):
        stopped = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: stopped.append(number))
        mark("ready")
        print("working", file=sys.stderr, flush=True)
        while not stopped:
            time.sleep(0.05)
        time.sleep(0.5)  # saves a checkpoint
        mark("saved")
        raise SystemExit(130)
    if mode == "orphan":
        # A grandchild that would keep the output open, as a loader worker whose parent has died.
        os.system("sleep 600 &")
    time.sleep(1)
    with open(model.path, "w") as file:
        file.write("{}")
    model.metadata["seed"] = seed
    mark("ended")


@dsl.component(base_image="toy", install_kfp_package=False)
def probe(folder: str, pretrained: Input[Model], untrained: bool, model: Output[Model]) -> None:
    model.metadata.update(seed=pretrained.metadata["seed"], kind="probe_untrained")
    with open(model.path, "w") as file:
        file.write("{}")


@dsl.component(base_image="toy", install_kfp_package=False)
def evaluate(model: Input[Model], found: Output[Artifact]) -> None:
    with open(found.path, "w") as file:
        file.write("{}")


@dsl.pipeline(name="toy")
def toy(folder: str, mode: str = "", seeds: list[int] = [0, 1, 2]):  # noqa: B006
    data = ingest(folder=folder)
    with dsl.ParallelFor(seeds) as seed:
        trained = pretrain(folder=folder, seed=seed, mode=mode, dataset=data.outputs["dataset"])
        control = probe(folder=folder, pretrained=trained.outputs["model"], untrained=True)
        evaluate(model=control.outputs["model"])


def run(
    folder: str, mode: str = "", seeds: tuple[int, ...] = (0, 1, 2)
) -> tuple[list[FinishedStep], str, str]:
    """(steps, what was shown, what was logged)."""
    screen, log = io.StringIO(), io.StringIO()
    arguments = {"folder": folder, "mode": mode, "seeds": list(seeds)}
    with fork_server() as server:
        steps = run_pipeline(toy, arguments, Console(screen), log, server)
    return steps, screen.getvalue(), log.getvalue()


if __name__ == "__main__":
    try:
        arguments = {"folder": sys.argv[1], "mode": "wait"}
        with open(f"{sys.argv[1]}/log", "w") as log, fork_server() as server:
            run_pipeline(toy, arguments, Console(), log, server)
    except PercmaeError as error:
        print(f"percmae: stopped: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
