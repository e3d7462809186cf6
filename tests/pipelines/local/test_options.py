"""From words on the command line to the options of run, compare and retrain."""

from __future__ import annotations

import re
from typing import Any

import pytest

from percmae.command import parse
from percmae.errors import UserError
from percmae.stages.placement import Placement
from pipelines.__main__ import _options, _parser
from pipelines.local.options import RetrainOptions, RunOptions

WORDS = ["--tag", "t", "--recipe", "mae", "--size", "tiny", "--source", "cifar10", "--seeds", "3,4"]
WORDS += ["--archives", "s3://a", "--dataset", "d", "--store", "s3://s", "--to", "out"]
WORDS += [
    "--no-fine-tune",
    "--label-fractions",
    "0.05,1",
    "optim.epochs=3",
    "--launcher",
    "job",
    "--train-image",
    "i:1",
]
WORDS += ["--nodes", "2", "--gpus", "8", "--job", "memory=1Gi", "--job", "cpu=1", "seed=1"]


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_words_become_options(verb: str) -> None:
    shares = {} if verb == "run" else {"label_fractions": (1.0,)}
    usual = RunOptions(placement=Placement(job=[]), **shares)
    assert _options(parse(_parser("p"), [verb]), RunOptions) == usual
    assert _options(parse(_parser("p"), [verb, *WORDS]), RunOptions) == RunOptions(
        tag="t",
        recipe="mae",
        size="tiny",
        source="cifar10",
        archives="s3://a",
        dataset="d",
        seeds=[3, 4],
        overrides=["optim.epochs=3", "seed=1"],
        fine_tune=False,
        label_fractions=[0.05, 1.0],
        to="out",
        store="s3://s",
        placement=Placement("job", "i:1", 2, 8, ["memory=1Gi", "cpu=1"]),
    )


def test_words_of_retrain() -> None:
    given = ["retrain", "--images", "photos", "--model", "m"]
    usual = RetrainOptions("photos", "m", rule=[], placement=Placement(job=[]))
    assert _options(parse(_parser("p"), given), RetrainOptions) == usual
    more = ["--rule", "level=0.01", "--rule", "min_gain=0.1", "--start", "afresh", "--seed", "3"]
    found = _options(parse(_parser("p"), [*given, *more, "optim.epochs=1"]), RetrainOptions)
    assert (found.rule, found.start, found.seed) == (["level=0.01", "min_gain=0.1"], "afresh", 3)
    found.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "best"}, "start=best: one of champion, afresh"),
        ({"model": "a b"}, "'a b' is no name"),
        ({"rule": ["gain=1"]}, "unknown setting of the rule 'gain'"),
        ({"overrides": ["optim.epoch=1"]}, "did you mean 'optim.epochs'"),
        ({"tag": "t" * 50}, "config key tag"),
        ({"seed": -1}, "config key seed=-1"),
        ({"variant": "gan"}, "unknown variant"),
    ],
)
def test_what_retrain_refuses_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        RetrainOptions(**{"images": "i", "model": "m", **changes}).check()
