"""From words on the command line to the options of run and compare."""

from __future__ import annotations

import pytest

from percmae.command import parse
from percmae.stages.placement import Placement
from pipelines.__main__ import _options, _parser
from pipelines.local.options import RunOptions

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
    assert _options(parse(_parser("p"), [verb])) == usual
    assert _options(parse(_parser("p"), [verb, *WORDS])) == RunOptions(
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
