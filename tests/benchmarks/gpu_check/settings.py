"""What is checked, at which sizes and within which time: on a GPU, or tiny on any machine."""

from __future__ import annotations

import os
from itertools import groupby
from typing import NamedTuple

VARIANTS = ("stylegan2_ada", "msg_gan", "ls_gan", "perceptual", "ssim", "mae")  # longest first

TINY = [
    "data.image_size=32",
    "model.patch_size=8",
    "model.encoder.width=24",
    "model.encoder.depth=3",
    "model.encoder.heads=2",
    "model.decoder.width=32",
    "model.decoder.depth=3",
    "model.decoder.heads=2",
    "discriminator.width=16",
]


class Contender(NamedTuple):
    """A training step that is timed.

    variant: ours, or ``vitmae`` (transformers) or ``vit`` (timm, supervised); batch: images a step,
    halved until it fits; compiled: measured under torch.compile too; epoch: 1 for the plain step,
    0 for one that refreshes the frozen discriminator.
    """

    variant: str
    size: str = "base"
    batch: int = 256
    compiled: bool = True
    epoch: int = 1


CONTENDERS = {
    "MAE-B": Contender("mae"),
    "LS-GAN-B": Contender("ls_gan"),
    "MSG-GAN-B": Contender("msg_gan", batch=128),
    "transformers ViTMAE-B": Contender("vitmae", compiled=False),
    "timm ViT-B/16 supervised": Contender("vit", compiled=False),
    "MAE-L": Contender("mae", "large", batch=128),
    # Its path length is the gradient of a gradient, which does not pass through compiled code.
    "StyleGAN2-ADA-B": Contender("stylegan2_ada", batch=64, compiled=False),
    "MSG-GAN-B refreshing": Contender("msg_gan", batch=128, compiled=False, epoch=0),
}

# Goals in images/s where a bf16 matrix product runs at 790 TFLOP/s; others scale with that rate.
GOALS = {"MAE-B": 7500.0, "LS-GAN-B": 4500.0, "MSG-GAN-B": 1200.0}
GOAL_TFLOPS = 790.0


def contenders(tiny: bool) -> dict[str, Contender]:
    """What is timed; at tiny sizes one of them compiled, since compiling takes as long as ever."""
    first = next(iter(CONTENDERS))
    return {
        name: contender._replace(compiled=contender.compiled and not (tiny and name != first))
        for name, contender in CONTENDERS.items()
    }


class Loop(NamedTuple):
    """A whole training loop that is looked into, its batches in memory."""

    variant: str
    batch: int
    compiled: bool


LOOPS = {
    "MAE-B": Loop("mae", 256, False),
    "MSG-GAN-B": Loop("msg_gan", 128, False),
    "MAE-B compiled": Loop("mae", 256, True),
}


def compiling(compiled: bool, tiny: bool) -> list[str]:
    """Settings of a compiled contender: its passes replayed as CUDA graphs, where there is one."""
    mode = "default" if tiny else "reduce-overhead"
    return [f"trainer.compile={str(compiled).lower()}", f"trainer.compile_mode={mode}"]


# Largest relative error against fp32 on the CPU: of a loss term, of a network's gradient.
BOUNDS = {"fp32": (1e-4, 1e-2), "bf16": (5e-2, 3e-1)}
STEPS = 20  # that must stay finite


LIMIT = 465  # seconds for everything
SLOWER = 20  # times as long may tiny sizes take, on whatever machine they are tried


class Task(NamedTuple):
    """part: the module that carries it out; name: what of the part."""

    part: str
    name: str


class Group(NamedTuple):
    """Processes of which ``parallel`` run at a time, all within ``limit`` seconds.

    processes: the tasks of each, all of the same part.
    """

    title: str
    limit: int
    parallel: int
    processes: list[list[Task]]


def groups(tiny: bool) -> list[Group]:
    """Everything that is done, in this order.

    What is timed runs alone. Compiling ahead of it, making photos and checking results share the
    cores of the machine; compiled code is found again in the compiler's cache. A group's limit is
    at least a quarter above what the slower of two runs on an H200 took for it, all of them
    together 440 s. What is known best already comes last, where time may run out.
    """
    cores = os.cpu_count() or 1
    together = min(8, cores)
    ahead = [name for name, contender in contenders(tiny).items() if contender.compiled]
    prepared = [
        Task("shards", "photos"),
        *(Task("compile", name) for name in ahead),
        *(Task("correctness", variant) for variant in VARIANTS),
    ]
    everything = [
        ("environment", 20, 1, [Task("environment", "machine")]),
        ("correctness, and compiling ahead", 125, together, prepared),
        ("a training step", 255, 1, [Task("speed", name) for name in CONTENDERS]),
        ("loader to step", 60, 1, [Task("loading", "MAE-B")]),
        ("waiting for the device", 100, 1, [Task("waits", name) for name in LOOPS]),
    ]
    if not tiny:
        # One process each: a task leaves nothing behind, and one that breaks takes no other along.
        return [Group(*rest, [[task] for task in tasks]) for *rest, tasks in everything]
    return [
        Group(title, SLOWER * limit, cores, [list(x) for _, x in groupby(tasks, lambda t: t.part)])
        for title, limit, _, tasks in everything
    ]
