"""Weights from runs and files in the store."""

from __future__ import annotations

import safetensors.torch
from torch import Tensor

from percmae.engine.checkpoint import LATEST, checked_bytes, first_line, read_state, torch_dict
from percmae.errors import CheckpointError
from percmae.runs.record import CHECKPOINTS, RECORD
from percmae.storage import StorePath


def run_state(run: str) -> dict[str, object]:
    """The whole newest checkpoint of a run, checked against its recorded SHA-256.

    Raises CheckpointError when the run has none.
    """
    folder = StorePath(run) / CHECKPOINTS
    pointer = folder / LATEST
    if not pointer.exists():
        raise CheckpointError(f"run {run} has no checkpoint yet; train it first")
    record = pointer.read_json()
    return read_state(folder / record["checkpoint"], record["sha256"])


def network_weights(run: str, network: str) -> dict[str, Tensor]:
    """One network's tensors from a run's newest checkpoint."""
    networks = run_state(run)["networks"]
    if not isinstance(networks, dict) or network not in networks:
        raise CheckpointError(f"run {run}: its checkpoint has no network {network!r}")
    return networks[network]


def initial_weights(uri: str) -> dict[str, Tensor]:
    """A generator's tensors from a run, or from a file as :func:`file_tensors` reads it."""
    path = StorePath(uri)
    if (path / RECORD).exists():
        return network_weights(uri, "generator")
    return file_tensors(path, uri)


def file_tensors(
    path: StorePath, what: str, sha256: str | None = None, mend: str = "fetch it again"
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of one of our checkpoints (its generator), or of a torch
    file with a state dict (plain, or under ``model`` as in the official MAE files).

    No code in a file is run. Raises CheckpointError when it cannot be read, when its SHA-256 is not
    ``sha256`` (``mend`` says what to do then), or when it holds anything else.
    """
    data = checked_bytes(path, what, sha256, mend)
    # A safetensors file is a length of 8 bytes and a JSON object.
    if path.name.endswith(".safetensors") or data[8:9] == b"{":
        try:
            return safetensors.torch.load(data)
        except Exception as error:
            # Damaged bytes make the parser raise whatever it stumbles over.
            raise CheckpointError(f"{what}: not a safetensors file ({first_line(error)})") from None
    state = torch_dict(data, what)
    for key in ("networks", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = state.get("generator", state)
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items())
    ):
        raise CheckpointError(f"{what}: expected a state dict of tensors, or a run")
    return dict(tensors)
