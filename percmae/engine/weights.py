"""Weights from runs and files in the store."""

from __future__ import annotations

from torch import Tensor

from percmae.engine.checkpoint import read_state
from percmae.errors import CheckpointError
from percmae.storage import StorePath


def run_state(run: str) -> dict[str, object]:
    """The whole newest checkpoint of a run, checked against its recorded SHA-256.

    Raises CheckpointError when the run has none.
    """
    folder = StorePath(run) / "checkpoints"
    pointer = folder / "latest.json"
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
    """A masked autoencoder's tensors from a run, one of our checkpoints, or an official MAE file
    (a state dict, or one under the key ``model``)."""
    path = StorePath(uri)
    if (path / "run.json").exists():
        return network_weights(uri, "generator")
    state = read_state(path)
    for key in ("networks", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    generator = state.get("generator", state)
    if not generator or not all(isinstance(v, Tensor) for v in generator.values()):
        raise CheckpointError(f"{uri}: expected a state dict of tensors, or a run")
    return dict(generator)
