"""Weights from runs and files in the store."""

from __future__ import annotations

import os
from typing import NamedTuple

from torch import Tensor

from percmae.config.schema import Checkpoint as Rules
from percmae.engine.checkpoint import checked_bytes, read_state
from percmae.engine.weight_files import tensors_in
from percmae.errors import CheckpointError
from percmae.models.naming import autoencoder_names, unwrapped
from percmae.progress import note
from percmae.runs.checkpoints import Checkpoints
from percmae.runs.record import CHECKPOINTS, RECORD
from percmae.storage import StorePath


def run_state(run: str) -> dict[str, object]:
    """The whole newest checkpoint of a run, checked against its recorded SHA-256.

    Raises CheckpointError when the run has none.
    """
    checkpoints = Checkpoints(StorePath(run) / CHECKPOINTS, Rules())
    latest = checkpoints.latest()
    if latest is None:
        raise CheckpointError(f"run {run} has no checkpoint yet; train it first")
    return read_state(checkpoints.folder / latest.name, latest.sha256)


def network_weights(run: str, network: str) -> dict[str, Tensor]:
    """One network's tensors from a run's newest checkpoint."""
    networks = run_state(run)["networks"]
    if not isinstance(networks, dict) or network not in networks:
        raise CheckpointError(f"run {run}: its checkpoint has no network {network!r}")
    return networks[network]


def initial_weights(uri: str) -> dict[str, Tensor]:
    """A generator's tensors from a run, or from a file as :func:`autoencoder_file` reads it."""
    path = StorePath(uri)
    if (path / RECORD).exists():
        return network_weights(uri, "generator")
    read = autoencoder_file(path, uri)
    tell(uri, read.remarks)
    return read.tensors


class AutoencoderFile(NamedTuple):
    """A file with an autoencoder's weights, or its encoder's, by our names.

    sha256: hex, of the file; remarks: on what was found how.
    """

    tensors: dict[str, Tensor]
    sha256: str
    remarks: list[str]


def autoencoder_file(path: StorePath, what: str) -> AutoencoderFile:
    """Weights of this project, the official MAE code, timm or Hugging Face, whatever wraps them.

    No code in the file is run. Raises CheckpointError when it cannot be read or holds anything
    else; sizes are not looked at.
    """
    data, sha256 = checked_bytes(path, what, None, MEND)
    read = tensors_in(data, what, MEND)
    named = autoencoder_names(read.tensors, what)
    return AutoencoderFile(named.tensors, sha256, read.remarks + named.remarks)


def file_tensors(
    path: StorePath, what: str, sha256: str | None = None, fix: str = "fetch it again"
) -> dict[str, Tensor]:
    """The tensors of any file of weights, wrappers' prefixes taken off their names.

    No code in a file is run. Raises CheckpointError when it cannot be read, when its SHA-256 is not
    ``sha256`` (``fix`` says what to do then), or when it holds anything else.
    """
    data, _ = checked_bytes(path, what, sha256, fix)
    read = tensors_in(data, what, fix)
    named = unwrapped(read.tensors, what)
    tell(what, read.remarks + named.remarks)
    return named.tensors


MEND = "fetch it again"


def tell(what: str, remarks: list[str]) -> None:
    """Say in one line how weights were found, once for all processes of a job."""
    if remarks and os.environ.get("RANK", "0") == "0":
        note(f"{what}: {'; '.join(remarks)}")
