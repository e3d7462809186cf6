"""Kill −9 at seeded moments, then the same command again: the run that comes of it is the run that
was never killed, bit for bit. All six variants; one process and two; with other processes.

A moment is the n-th call of a Python function after training has come to a step, to a save, or to
an upload: the process counts its own calls and kills itself with SIGKILL, which no code of its own
hears of.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from engine.forked import Done, Job, verb
from engine.test_processes import LIVELY, command, figures, losses
from s3_server import S3

from percmae.data.shards import Dataset
from percmae.data.stream import epoch_order
from percmae.errors import PeerLost
from percmae.storage import StorePath

from .conditions import differences, last_state, nothing_is_left, shared_memory

VARIANTS = {
    "mae": (),
    "ssim": (),
    "perceptual": (),
    "ls_gan": LIVELY,
    "msg_gan": ("adversarial.kind=wgan",),
    "stylegan2_ada": LIVELY,
}
EVERY = 3
# Few checkpoints, each at another place between two.
COURSE = (
    *("optim.max_steps=20", f"checkpoint.every_steps={EVERY}", "trainer.val_interval=0.5"),
    *("tracking.knn_samples=16", "tracking.rankme_samples=16", "tracking.images=0"),
)
MOMENTS = {
    "step": ("Loop._optimise", 3000),
    "save": ("Loop._save", 400),
    "write": ("write_state", 2000),  # in a thread of its own
    "upload": ("Outbox._send_checkpoint", 2500),  # in another
}
"""The function that is at work then, and about how many calls it makes."""


class Killer:
    """Counts the calls of Python functions at a moment, and kills this process at one of them."""

    def __init__(self, moment: str, times: int, call: int, told: Path) -> None:
        """The ``call``-th call after the moment has come ``times`` times, or where it is over."""
        self.moment, self.times, self.call, self.told = moment, times, call, told
        self.inside: FrameType | None = None
        self.thread = 0
        self.step = 0

    def begin(self) -> None:
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        if self.inside is None:
            if event == "call" and self._comes(frame):
                self.times -= 1
                if self.times == 0:
                    self.inside, self.thread = frame, threading.get_ident()
        elif threading.get_ident() == self.thread:
            self.call -= event == "call"
            if self.call < 0 or (event == "return" and frame is self.inside):
                self.told.write_text(json.dumps([self.step, frame.f_code.co_qualname]))
                os.kill(os.getpid(), signal.SIGKILL)

    def _comes(self, frame: FrameType) -> bool:
        code = frame.f_code
        if code.co_qualname == "Loop._optimise":
            # Steps that are done, where this one is the last.
            self.step = frame.f_locals["self"].step + (self.moment != "step")
        return code.co_qualname == MOMENTS[self.moment][0]


def killed(arguments: list[str], rank: int, *moment: Any) -> int:
    """As the command line, until the moment comes in that process."""
    if int(os.environ.get("RANK", "0")) == rank:
        Killer(*moment).begin()
    return verb(arguments)


def kill_and_go_on(
    arguments: list[str], folder: Path, draw: random.Random, sizes: tuple[int, ...]
) -> list[str]:
    """Kill it at each moment, start it again, and let it come to its end; what was seen.

    sizes: processes of each start.
    """
    seen, shared, lost, before = [], shared_memory(), None, ""
    for number, (size, moment) in enumerate(zip(sizes, (*MOMENTS, None), strict=True)):
        times, rank = draw.randint(*(4, 7) if moment == "step" else (1, 2)), 0
        if moment == "step":
            rank = draw.randrange(size)
        told = folder / f"killed-{number}"
        work, given = verb, (arguments,)
        if moment is not None:
            call = draw.randrange(MOMENTS[moment][1])
            work, given = killed, (arguments, rank, moment, times, call, told)
        with Job(work, given, folder / f"said-{number}", size) as job:
            done = job.ended()
            nothing_is_left(job, shared)
        if lost is not None:
            begun = re.search(r"going on from step (\d+)", done[0].stderr)
            at = int(begun[1]) if begun else 0
            assert 0 <= lost[0] - at <= 2 * EVERY, (lost, at)
            seen.append(f"{before}: after step {lost[0]} in {lost[1]}, {lost[0] - at} steps lost")
        if moment is None:
            assert [one.returncode for one in done] == [0] * size, done
            continue
        codes = [PeerLost.exit_code] * size
        codes[rank] = -signal.SIGKILL
        assert [one.returncode for one in done] == codes, done
        lost, before = json.loads(told.read_text()), moment
    print(arguments[arguments.index("--variant") + 1], sizes, *seen, sep="\n  ")
    return seen


def straight(arguments: list[str], folder: Path, size: int = 1) -> list[Done]:
    with Job(verb, (arguments,), folder / "said-straight", size) as job:
        done = job.ended()
    assert [one.returncode for one in done] == [0] * size, done
    return done


def assert_same_run(a: StorePath, b: StorePath) -> None:
    assert figures(a) == figures(b)  # type: ignore[arg-type]
    assert differences(last_state(a), last_state(b)) == []


@pytest.mark.parametrize(("variant", "size"), [*((variant, 1) for variant in VARIANTS), ("mae", 2)])
def test_killed_at_each_moment_and_gone_on_is_the_run_that_was_not(
    tiny_dataset: Dataset, tmp_path: Path, s3: S3, vgg16: str, variant: str, size: int
) -> None:
    settings = [*COURSE, *VARIANTS[variant], f"data.batch_size={16 // size}"]
    if variant == "perceptual":
        settings += ["perceptual.extractor=vgg16", f"perceptual.weights={vgg16}"]
    to = s3.uri("killed")
    whole = command(tiny_dataset, tmp_path, *settings, variant=variant)
    cut = [to if part == str(tmp_path) else part for part in whole]
    straight(whole, tmp_path, size)
    seen = kill_and_go_on(cut, tmp_path, random.Random(f"{variant} {size}"), (size,) * 5)
    assert len(seen) == 4
    assert_same_run(StorePath(tmp_path) / variant, StorePath(to) / variant)


def noting(arguments: list[str], folder: Path, work: Callable[..., int], *given: Any) -> int:
    """Write down which samples each step takes."""
    from percmae.engine.loop import Loop

    optimise = Loop._optimise

    def noted(self: Loop, micros: list[Any], *rest: Any) -> None:
        ids = [int(id_) for micro in micros for id_ in micro.ids]
        with (folder / f"ids-{self.world.rank}").open("a") as file:
            file.write(json.dumps([self.world.size, self.step, ids]) + "\n")
        optimise(self, micros, *rest)

    Loop._optimise = noted  # type: ignore[method-assign]
    return work(arguments, *given)


def test_with_other_processes_each_sample_is_seen_once(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    course = (*COURSE, "optim.total_batch=24", "data.batch_size=4")
    straight(command(tiny_dataset, tmp_path / "whole", *course), tmp_path)
    cut = command(tiny_dataset, tmp_path / "cut", *course)
    for number, size in enumerate((1, 3, 2)):
        given = (cut, tmp_path, verb)
        if size != 2:
            told = tmp_path / f"killed-{number}"
            given = (cut, tmp_path, killed, size - 1, "step", 7, 500, told)  # type: ignore
        with Job(noting, given, tmp_path / f"said-{number}", size) as job:
            codes = [one.returncode for one in job.ended()]
        assert size != 2 or codes == [0, 0]
    steps: dict[int, dict[int, list[list[int]]]] = {}
    for size in (1, 3, 2):  # what a later start has done again counts
        for rank in range(size):
            for line in (tmp_path / f"ids-{rank}").read_text().splitlines():
                its, step, ids = json.loads(line)
                if its == size:
                    if rank == 0:
                        steps[step] = {size: []}
                    steps[step].setdefault(size, []).append(ids)
    assert sorted(steps) == list(range(18))
    train = tiny_dataset.split("train")
    epoch = len(train) // 24
    for number in range(18 // epoch):
        order = epoch_order(train, 0, number)[: epoch * 24].tolist()
        for place in range(epoch):
            (shares,) = steps[number * epoch + place].values()
            seen = [id_ for share in shares for id_ in share]
            assert sorted(seen) == sorted(order[place * 24 : (place + 1) * 24])
    # Masks are drawn by micro-batch, of which others have others.
    assert losses(tmp_path / "cut" / "mae") == pytest.approx(
        losses(tmp_path / "whole" / "mae"), rel=0.1
    )
