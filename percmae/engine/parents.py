"""Files of weights that probes and fine-tunings build upon, as they do upon runs."""

from __future__ import annotations

import re
from typing import Any

from percmae.config import Config, to_dict
from percmae.config.presets import heads_of_width
from percmae.engine.weights import autoencoder_file, tell
from percmae.models.naming import left_out
from percmae.models.sizes import encoder_config
from percmae.models.weights import split_encoder
from percmae.runs.downstream import inherited
from percmae.runs.parent import WeightsFile
from percmae.runs.record import CHECKPOINTS, RECORD, Run
from percmae.storage import StorePath


def weights_file(uri: str) -> WeightsFile:
    """The pretrained encoder in a file: of this project, the official MAE code, timm, Hugging Face.

    Sizes are read from the tensors, and every tensor has to find its place. The number of heads,
    which leaves no trace in them, is that of the size preset with this width; normalisation is the
    recipe's. A checkpoint in a run's folder has both from the run's config. Raises CheckpointError
    for anything that is not one encoder, with or without a decoder or a classifier's head.
    """
    path = StorePath(uri)
    read = autoencoder_file(path, uri)
    encoder, left = split_encoder(read.tensors)
    tell(uri, read.remarks + ([left_out(left)] if left else []))
    config = encoder_config(encoder, uri)
    name = _name(path.name)
    run = path.parent.parent
    if path.parent.name == CHECKPOINTS and (run / RECORD).exists():
        made_by = Run.open(run.uri).config
        base = {**inherited(made_by), "tag": None, "name": f"{made_by.run_name}_{name}"}
        return WeightsFile(path.uri, read.sha256, made_by, base, encoder)
    base = {"name": name, **_sizes(config)}
    return WeightsFile(path.uri, read.sha256, config, base, encoder)


def _sizes(config: Config) -> dict[str, Any]:
    """The settings that the tensors tell; heads where the width is a preset's."""
    sizes = to_dict(config)["model"]["encoder"]
    del sizes["heads"]
    heads = heads_of_width(config.model.encoder.width)
    if heads is not None:
        sizes["heads"] = heads
    return {
        "data": {"image_size": config.data.image_size},
        "model": {"patch_size": config.model.patch_size, "encoder": sizes},
    }


def _name(file: str) -> str | None:
    """A file's name without its endings, as the name of a run; None where nothing is left of it."""
    stem = _ENDINGS.sub("", file)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_LONGEST_NAME].strip("._-") or None


_ENDINGS = re.compile(r"(\.(gz|tar|pth|pt|pkl|bin|ckpt|safetensors))+$", re.IGNORECASE)
_LONGEST_NAME = 100
