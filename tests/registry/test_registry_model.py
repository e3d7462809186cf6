"""Versions, aliases and their moves, without a network."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from percmae.cli.verbs import main
from percmae.errors import DataError, UserError
from percmae.registry.model import LATEST, Model, Version, read_model, reference
from percmae.registry.moves import add, promote, rollback
from percmae.registry.verbs import difference, listing, shown
from percmae.runs.files import DatasetIdentity
from percmae.storage import StorePath

DATA = DatasetIdentity(uri="s3://b/data/manifest.json", digest="sha256:" + "5e" * 32)


def version(key: str, **changes: Any) -> Version:
    """One of a run with this key, not numbered yet."""
    values: dict[str, Any] = {
        "version": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "run": f"s3://b/runs/{key}",
        "key": f"sha256:{key}",
        "stage": "finetune",
        "variant": "mae",
        "seed": 0,
        "config_digest": "sha256:c",
        "parent": None,
        "data": DATA,
        "evaluated_on": DATA,
        "versions": {"torch": "2"},
        "metrics": {"top1": 0.5},
        "folder": f"versions/{key}",
        "files": {},
    }
    return Version(**{**values, **changes})


@pytest.fixture
def folder(tmp_store: StorePath) -> str:
    """A folder with a model of three versions, of which the first is champion."""
    models = (tmp_store / "models").uri
    for key in "abc":
        add(reference(f"{models}/clothes"), version(key, metrics={"top1": ord(key) / 1000}))
    promote(reference(f"{models}/clothes@1"), why="the first")
    return models


def test_versions_are_numbered_and_a_run_has_one(folder: str) -> None:
    asked = reference(f"{folder}/clothes")
    again = add(asked, version("b", metrics={"top1": 0.0}))
    assert again.version == 2
    assert again.metrics == {"top1": 0.098}
    model = read_model(asked.path)
    assert [each.version for each in model.versions] == [1, 2, 3]
    assert model.aliases == {"latest": 3, "champion": 1}
    assert [move.kind for move in model.history] == ["add"] * 3 + ["promote"]


def test_promote_and_rollback_as_often_as_there_is_something_before(folder: str) -> None:
    asked = reference(f"{folder}/clothes")
    promote(asked._replace(which="3"), instead_of=1)
    promote(asked._replace(which="2"), instead_of=3)
    assert rollback(asked, why="too slow").aliases["champion"] == 3
    assert rollback(asked).aliases["champion"] == 1
    with pytest.raises(UserError, match="has named no version before version 1"):
        rollback(asked)
    promote(asked._replace(which=LATEST), instead_of=1)
    model = rollback(asked)
    assert model.aliases["champion"] == 1
    told = [(move.before, move.after, move.kind) for move in model.history if move.before]
    assert told[-5:] == [
        (3, 2, "promote"),
        (2, 3, "rollback"),
        (3, 1, "rollback"),
        (1, 3, "promote"),
        (3, 1, "rollback"),
    ]


def test_of_two_promotions_against_one_champion_one_wins(folder: str) -> None:
    asked = reference(f"{folder}/clothes")
    promote(asked._replace(which="2"), instead_of=1)
    with pytest.raises(UserError, match="champion is version 2 by now, not version 1"):
        promote(asked._replace(which="3"), instead_of=1)
    assert read_model(asked.path).aliases["champion"] == 2
    # The same one twice is no contest.
    promote(asked._replace(which="2"), instead_of=1)
    assert len(read_model(asked.path).history) == 5


def _promote(model: str, which: int, start: Any, won: Any) -> None:
    start.wait()
    try:
        promote(reference(f"{model}@{which}"), instead_of=1)
    except UserError:
        return
    won.put(which)


def test_two_processes_at_once_cannot_both_win(folder: str) -> None:
    context = multiprocessing.get_context("fork")
    model = f"{folder}/clothes"
    for _ in range(5):
        start, won = context.Event(), context.Queue()
        both = [context.Process(target=_promote, args=(model, n, start, won)) for n in (2, 3)]
        for process in both:
            process.start()
        start.set()
        for process in both:
            process.join(120)
            assert process.exitcode == 0
        winner = won.get(timeout=60)
        assert won.empty()
        found = read_model(StorePath(model))
        assert found.aliases["champion"] == winner
        assert [m.after for m in found.history][-1] == winner
        rollback(reference(model))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clothes@7", "has no version 7; versions: 1, 2, 3; aliases: champion=1, latest=3"),
        ("clothes@best", "has no alias 'best'"),
        ("clothes", "say which version"),
        ("shoes@1", "there is no model at"),
        ("clothes@", "what stands behind @: '' is no name"),
        ("clo thes@1", "is no name"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(folder: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        promote(reference(f"{folder}/{text}"))
    assert "\n" not in str(error.value)


def test_latest_moves_by_itself_alone(folder: str) -> None:
    with pytest.raises(UserError, match="names the newest version by itself"):
        promote(reference(f"{folder}/clothes@1"), LATEST)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    add(reference(f"{tmp_path}/clothes"), version("a"))
    file = tmp_path / "clothes" / "model.json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(DataError, match=r"clothes/model\.json.* is not JSON"):
        add(reference(f"{tmp_path}/clothes"), version("b"))


def test_listing_showing_and_comparing(folder: str) -> None:
    add(reference(f"{folder}/deep/shoes"), version("x"))
    lines = listing(folder).splitlines()
    assert lines[0].split() == ["name", "versions", "aliases", "changed", "address"]
    assert lines[1].startswith("clothes  3         champion=1 latest=3")
    assert lines[2].endswith("deep/shoes")
    assert [row["name"] for row in json.loads(listing(folder, as_json=True))] == [
        "clothes",
        "shoes",
    ]
    text = shown(f"{folder}/clothes")
    assert text.splitlines()[1].split()[:3] == ["3", "latest", "finetune"]
    assert "promote  champion: – → 1" in text
    assert "the first" in text
    assert json.loads(shown(f"{folder}/clothes@champion", as_json=True))["version"] == 1
    found = json.loads(difference(f"{folder}/clothes@1", "@3", as_json=True))
    assert found["top1"] == [0.097, 0.099]
    assert set(found) == {"version", "run", "top1"}
    assert difference(f"{folder}/clothes@1", "@champion") == "no difference"


def test_from_the_command_line(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "promote", f"{folder}/clothes@latest", "--why", "better"]) == 0
    assert capsys.readouterr().out.strip() == f"{folder}/clothes@3"
    assert main(["models", "rollback", f"{folder}/clothes"]) == 0
    assert capsys.readouterr().out.strip() == f"{folder}/clothes@1"
    assert main(["models", "ls", folder]) == 0
    assert main(["models", "promote", f"{folder}/clothes@9"]) == 2
    assert "has no version 9" in capsys.readouterr().err
    assert main(["models", "ls", f"{folder}/none"]) == 2


def test_an_unknown_field_of_a_later_percmae_is_no_fault(folder: str) -> None:
    path = StorePath(f"{folder}/clothes") / "model.json"
    path.write_json({**path.read_json(), "owner": "us"})
    assert isinstance(read_model(StorePath(f"{folder}/clothes")), Model)
