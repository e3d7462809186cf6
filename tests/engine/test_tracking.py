"""Event files of long and of resumed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from percmae.config.schema import Checkpoint
from percmae.engine import tracking
from percmae.engine.spool import Spool
from percmae.engine.tracking import Tracker
from percmae.storage import StorePath


def test_a_resumed_run_that_begins_another_event_file_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(tracking, "EVENT_FILE_BYTES", 1)
    # A number of the process in the files' names; they are read by name, and 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = StorePath(tmp_path)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4, 5))):
        with Spool(run, 0.0, Checkpoint()) as spool, Tracker(spool, start) as tracker:
            for step in steps:
                tracker.log(step, 1.0, "train", {"loss": start + step / 10})
                tracker.flush()
    events = EventAccumulator(str(tmp_path / "train_outputs" / "tensorboard_logs")).Reload()
    found = {e.step: e.value for e in events.Scalars("train/loss")}
    assert found == pytest.approx({1: 0.1, 2: 0.2, 3: 2.3, 4: 2.4, 5: 2.5})
    assert len(list((tmp_path / "train_outputs" / "tensorboard_logs").iterdir())) == 6
