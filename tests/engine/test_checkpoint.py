"""Checkpoints: whole or not at all, checked, pruned, never executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from percmae.config.schema import Checkpoint
from percmae.engine.checkpoint import Checkpoints, read_state
from percmae.errors import CheckpointError
from percmae.storage import StorePath


def names(folder: StorePath) -> list[str]:
    return sorted(e.name for e in folder.iter() if e.name.endswith(".pt"))


def test_round_trip_and_pointer(tmp_store: StorePath) -> None:
    folder = tmp_store / "checkpoints"
    writer = Checkpoints(folder, Checkpoint())
    assert writer.load_latest() is None
    writer.save({"w": torch.arange(3.0), "step": 5}, 5, 0, 1.0, False)
    state = Checkpoints(folder, Checkpoint()).load_latest()
    assert state is not None
    assert torch.equal(state["w"], torch.arange(3.0))
    pointer = (folder / "latest.json").read_json()
    assert (pointer["checkpoint"], pointer["step"]) == ("step-00000005.pt", 5)


def test_last_best_and_milestones_are_kept(tmp_path: Path) -> None:
    folder = StorePath(tmp_path)
    rules = Checkpoint(keep_last=2, keep_best=1)
    losses = {1: 3.0, 2: 0.5, 3: 2.0, 4: 1.0, 5: None, 6: 1.5}
    for step, loss in losses.items():
        # A new object each time, as after a crash: the list comes from the store.
        writer = Checkpoints(folder, rules)
        writer.load_latest()
        writer.save({"step": step}, step, step, loss, step == 3)
    kept = [f"step-0000000{n}.pt" for n in (2, 3, 5, 6)]
    assert names(folder) == kept


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = StorePath(tmp_path)
    Checkpoints(folder, Checkpoint()).save({"w": torch.zeros(100)}, 1, 0, None, False)
    file = tmp_path / "step-00000001.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Checkpoints(folder, Checkpoint()).load_latest()


class Hostile:
    """What a hostile pickle does when it is opened: here, leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"w": Hostile(mark)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"w": Hostile(mark)}))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match=r"refused|not a torch checkpoint"):
            read_state(StorePath(tmp_path / name))
    assert not mark.exists()


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "list.pt", "absent.pt"):
        with pytest.raises(CheckpointError) as caught:
            read_state(StorePath(tmp_path / name))
        assert "\n" not in str(caught.value)
