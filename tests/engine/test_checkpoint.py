"""Checkpoints: whole or not at all, checked, pruned, never executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from percmae.config.schema import Checkpoint
from percmae.engine.checkpoint import State, read_state, write_state
from percmae.engine.snapshot import Snapshots
from percmae.engine.spool import Spool
from percmae.errors import CheckpointError, DataError
from percmae.runs.checkpoints import Checkpoints
from percmae.storage import StorePath

RECORD = '{"step": 0}\n'


def names(folder: StorePath) -> list[str]:
    return sorted(e.name for e in folder.iter() if e.name.endswith(".pt"))


def save(
    run: StorePath,
    state: State,
    step: int = 1,
    val_loss: float | None = None,
    milestone: bool = False,
    rules: Checkpoint | None = None,
) -> None:
    """By a new object each time, as after a crash: the list comes from the store."""
    with Spool(run, 0.0, rules or Checkpoint()) as spool:
        spool.checkpoint(state, RECORD, step, step, val_loss, milestone)


def load(run: StorePath) -> State | None:
    checkpoints = Checkpoints(run / "checkpoints", Checkpoint())
    latest = checkpoints.latest()
    return latest and read_state(checkpoints.folder / latest.name, latest.sha256)


def test_round_trip_and_pointer(tmp_store: StorePath) -> None:
    run = tmp_store / "run"
    assert load(run) is None
    save(run, {"w": torch.arange(3.0), "step": 5}, 5, 1.0)
    state = load(run)
    assert state is not None
    assert torch.equal(state["w"], torch.arange(3.0))
    pointer = (run / "checkpoints/latest.json").read_json()
    assert (pointer["checkpoint"], pointer["step"]) == ("step-00000005.pt", 5)
    assert (run / "run.json").read_text() == RECORD


def test_last_best_and_milestones_are_kept(tmp_path: Path) -> None:
    run = StorePath(tmp_path)
    rules = Checkpoint(keep_last=2, keep_best=1)
    losses = {1: 3.0, 2: 0.5, 3: 2.0, 4: 1.0, 5: None, 6: 1.5}
    for step, loss in losses.items():
        save(run, {"step": step}, step, loss, step == 3, rules)
    kept = [f"step-0000000{n}.pt" for n in (2, 3, 5, 6)]
    assert names(run / "checkpoints") == kept
    found = Checkpoints(run / "checkpoints", rules)
    found.latest()
    why = [found.reasons(saved, found.kept) for saved in found.kept]
    assert why == [["best"], ["milestone"], ["last"], ["latest"]]


def test_a_snapshot_is_not_changed_by_the_next_step(tmp_path: Path) -> None:
    run, weight = StorePath(tmp_path), torch.zeros(3, 4).t()
    optimizer = torch.optim.SGD([torch.nn.Parameter(weight)], 0.5)
    normed = torch.nn.BatchNorm1d(3)
    state = {"w": weight, "pair": (weight, 2), "optimizer": optimizer.state_dict()}
    with Spool(run, 0.0, Checkpoint()) as spool:
        spool.checkpoint({**state, "norm": normed.state_dict()}, RECORD, 1, 0)
        weight.fill_(1.0)
        optimizer.param_groups[0]["lr"] = 9.0
    saved = load(run)
    assert saved is not None
    assert not saved["w"].any()
    assert saved["w"].stride() == weight.stride()
    assert saved["pair"][1] == 2
    assert saved["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert Snapshots().take(normed.state_dict())._metadata == normed.state_dict()._metadata


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run = StorePath(tmp_path)
    save(run, {"w": torch.zeros(100)})
    file = tmp_path / "checkpoints/step-00000001.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(run)


def test_a_damaged_pointer_is_refused(tmp_path: Path) -> None:
    save(StorePath(tmp_path), {"w": torch.zeros(1)})
    pointer = tmp_path / "checkpoints/latest.json"
    pointer.write_text(pointer.read_text().replace('"step": 1', '"step": "1"'))
    with pytest.raises(DataError, match=r"latest\.json: step must be int, not '1'"):
        load(StorePath(tmp_path))


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


def test_an_archive_is_what_its_sum_says(tmp_store: StorePath) -> None:
    path = tmp_store / "w.pt"
    sha256 = write_state(path, {"w": torch.arange(100.0)})
    assert torch.equal(read_state(path, sha256)["w"], torch.arange(100.0))
