"""The checkpoint benchmark measures what it says. No timing is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from s3_server import S3

from percmae.bench import checkpoint
from percmae.bench.checkpoint import WAYS, bench, table, training_state
from percmae.cli.verbs import main
from percmae.errors import UserError

SMALL = ["data.image_size=32", "model.patch_size=8", "model.encoder.depth=1"]
SMALLER = [*SMALL, "model.decoder.depth=1", "model.decoder.width=32"]


def test_a_state_is_weights_and_two_moments() -> None:
    state = training_state("tiny", SMALLER)
    weights = state["networks"]["generator"]
    moments = state["optimizers"]["generator"]["state"].values()
    trained = sum(moment["exp_avg"].numel() for moment in moments)
    assert 0 < trained <= sum(tensor.numel() for tensor in weights.values())
    assert all(torch.is_tensor(moment["exp_avg_sq"]) for moment in moments)


def test_each_way_has_its_row(
    s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured in this process, as the processes of the benchmark would, but shortly."""
    monkeypatch.setattr(checkpoint, "_QUIET", 0.05)
    monkeypatch.setattr(
        checkpoint, "answer_of", lambda _, request, *rest: checkpoint._measure(request)
    )
    document = bench(s3.uri("bench"), ["tiny"], 2, SMALLER)
    (size,) = document["sizes"]
    rows = {row["way"]: row for row in size["rows"]}
    assert list(rows) == list(WAYS)
    assert {way: (row["disk"] is None, row["store"] is None) for way, row in rows.items()} == {
        "to a store": (False, False),
        "to a folder": (False, True),
        "torch.distributed.checkpoint": (False, True),
        "in the thread, to a store": (True, False),
    }
    for row in rows.values():
        assert row["share_of_interval"] == row["stall"] / 60
    assert json.loads(json.dumps(document)) == document
    assert len(table(document).splitlines()) == 4 + len(rows)
    expected = checkpoint._expected("tiny", SMALLER)
    assert expected == pytest.approx(rows["to a store"]["bytes"], rel=0.02)
    monkeypatch.setattr(checkpoint, "available", lambda: 0)
    (size,) = bench(s3.uri("bench"), ["tiny"], 1, SMALLER)["sizes"]
    assert size["rows"] == []
    assert "to a folder: left out, there is too little memory for it" in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UserError, match="--rounds 0"):
        bench("unused", ["tiny"], 0)
    assert main(["bench", "checkpoint", "--size", "none"]) == 2
