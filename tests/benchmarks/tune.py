"""One trial of the recipe demo, judged without the test set: what docs/demo.md rests upon.

    python tests/benchmarks/tune.py MANIFEST --log FILE [--what pretrained] [--seed 0] [key=value …]

Pretrains with recipe demo and the settings given, on one thread, in a folder that goes again. Then
a logistic regression, trained until it converges, and k-NN are judged on its frozen features.
Images to judge by are the validation slice and, since that has few of them, training images whose
labels the classifier is not given (``--judged``, as many of each class). Appends one line of JSON
to the log: settings, seconds of pretraining, figures for features of the mean of the patches and of
the class token. ``--what untrained``: of the network as it was drawn; ``pixels``: of the pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.config import Config, load_config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader
from percmae.engine.knn import spread_out, vote
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.runs.record import identity_of

WHAT = ("pretrained", "untrained", "pixels")
DECAYS = (1e-2, 1e-3, 1e-4, 1e-5)
# The validation of a trial is this program's; the loop's own only costs time.
QUICK = (
    "data.workers=0",
    "trainer.threads=1",
    "trainer.val_interval=1000",
    "tracking.images=0",
    "tracking.knn_samples=0",
    "tracking.rankme_samples=0",
    "checkpoint.every_steps=1000000",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--what", choices=WHAT, default=WHAT[0])
    parser.add_argument("--variant", default="mae")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", type=int, default=20_000, help="images with labels")
    parser.add_argument("--judged", type=int, default=10_000, help="training images judged by")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    what, settings = options.what, [*QUICK, *options.overrides, f"seed={options.seed}"]
    config = load_config(options.variant, "demo", overrides=settings)
    dataset = Dataset.open(options.manifest)
    config = identity_of(config, dataset).config  # with the dataset's mean and deviation
    line = {"what": what, "variant": options.variant, "seed": options.seed}
    line |= {"settings": options.overrides, "labelled": options.labelled}
    if what == "pretrained":
        model, seconds = trained(config, options.manifest)
        line["seconds"] = round(seconds, 1)
    else:
        torch.manual_seed(config.seed)
        model = build_model(config)
    line["parameters"] = sum(p.numel() for name, p in model.named_parameters() if is_encoder(name))
    bank, judged = splits(dataset, options.labelled, options.judged)
    line["judged"] = sum(map(len, judged))
    line |= figures(model.eval(), config, what, bank, judged)
    with options.log.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def trained(config: Config, manifest: str) -> tuple[MaskedAutoencoder, float]:
    """A network after pretraining, and how many seconds of a thread that took."""
    with tempfile.TemporaryDirectory() as scratch:
        began = time.process_time()
        run = pretrain(config, manifest, scratch).run
        seconds = time.process_time() - began
        model = build_model(run.config)
        model.load_state_dict(network_weights(run.uri, "generator"))
    return model, seconds


def is_encoder(name: str) -> bool:
    return not name.startswith(("decoder", "mask_token"))


def splits(dataset: Dataset, labelled: int, judged: int) -> tuple[Split, list[Split]]:
    """Images with labels for the classifier, and those that it is judged by."""
    train = dataset.split("train")
    held_out = spread_out(train.labels, judged)
    rest = np.setdiff1d(np.arange(len(train)), held_out, assume_unique=True)
    bank = rest[spread_out(train.labels[rest], labelled)]
    return train.subset("train", bank), [dataset.split("val"), train.subset("train", held_out)]


def figures(
    model: MaskedAutoencoder, config: Config, what: str, bank: Split, judged: list[Split]
) -> dict[str, float]:
    """Accuracies of logistic regression and of k-NN, for each kind of features."""
    x, y = features(model, config, what, bank)
    parts = [features(model, config, what, split) for split in judged]
    found = {}
    labels = torch.cat([part[1] for part in parts])
    for name in x:
        theirs = torch.cat([part[0][name] for part in parts])
        found[f"linear_{name}"] = round(logistic(x[name], y, theirs, labels), 4)
        near = vote(F.normalize(theirs, dim=1), F.normalize(x[name], dim=1), y, 20)
        found[f"knn_{name}"] = round(float((near == labels).float().mean()), 4)
    return found


@torch.no_grad()
def features(
    model: MaskedAutoencoder, config: Config, what: str, split: Split
) -> tuple[dict[str, Tensor], Tensor]:
    """Features (N, D) by name of the images of a split, as they are, and their labels (N,)."""
    transform = build_transform(config.data, False, "probe")
    loader = Loader(split, transform, batch_size=250, seed=0, shuffle=False, drop_last=False)
    found: dict[str, list[Tensor]] = {}
    labels = []
    for _, _, batch in loader.batches():
        if what == "pixels":
            # The three channels of a grey image are one.
            found.setdefault("pixels", []).append(batch.images[:, 0].flatten(1))
        else:
            everywhere = torch.arange(model.patches).expand(len(batch.images), -1)
            latent = model.encode(model.patchify(batch.images), everywhere)
            found.setdefault("avg", []).append(latent[:, 1:].mean(1))
            found.setdefault("token", []).append(latent[:, 0])
        labels.append(batch.labels)
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)


def logistic(x: Tensor, y: Tensor, theirs: Tensor, labels: Tensor) -> float:
    """Accuracy on (theirs, labels) of a logistic regression of (x, y), by L-BFGS.

    The best over a few strengths of weight decay, each begun from the solution of the one before.
    """
    mean, std = x.mean(0), x.std(0) + 1e-3
    x, theirs = (x - mean) / std, (theirs - mean) / std
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    return max(_fitted(x, y, weight, bias, decay, theirs, labels) for decay in DECAYS)


def _fitted(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, decay: float, theirs: Tensor, labels: Tensor
) -> float:
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + decay * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return float(((theirs @ weight + bias).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
