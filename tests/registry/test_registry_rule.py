"""The rule between champion and challenger, on answers made up for it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from scipy.stats import binom

from percmae.errors import ConfigError, UserError
from percmae.registry.rule import Rule, judged, paired, rule_of
from percmae.runs.predictions import Class, Predictions

CLASSES = [Class(wnid=f"n{i}", name=f"class {i}") for i in range(4)]


def answers(*of_class: str, **changes: Any) -> Predictions:
    """Of each class a text: ``+`` for an image that is right, ``-`` for one that is wrong."""
    labels = [label for label, text in enumerate(of_class) for _ in text]
    signs = chain.from_iterable(of_class)
    values: dict[str, Any] = {
        "key": "sha256:k",
        "test": "sha256:t",
        "classes": CLASSES,
        "keys": [f"image {i}" for i in range(len(labels))],
        "labels": labels,
        "predicted": [
            label if sign == "+" else (label + 1) % 4
            for label, sign in zip(labels, signs, strict=True)
        ],
    }
    return Predictions(**{**values, **changes})


WIDE = Rule(max_class_drop=None)


def test_a_clear_gain_is_one_and_p_is_mcnemars() -> None:
    pairs = paired(answers("+" * 10 + "-" * 10 + "+"), answers("+" * 20 + "-"))
    found = judged(pairs, WIDE)
    assert found.reasons == []
    assert (found.champion_only, found.challenger_only) == (1, 10)
    assert found.p_value == pytest.approx(binom.sf(9, 11, 0.5))
    assert found.gain == pytest.approx(9 / 21)


@pytest.mark.parametrize(
    ("champion", "challenger", "rule", "reason"),
    [
        (("++--",), ("++--",), WIDE, "its top-1 is the same"),
        (("++--",), ("--++",), WIDE, "its top-1 is the same"),
        (("+++-",), ("++--",), WIDE, "its top-1 is 25.0 points lower"),
        (("++--",), ("+++-",), WIDE, "with probability 0.5, above level=0.05"),
        (
            ("+" * 10 + "-" * 10,),
            ("+" * 20,),
            Rule(min_gain=0.6),
            "it gains 50.0 points, less than min_gain=0.6",
        ),
        (
            ("+" * 10, "-" * 20),
            ("+" * 8 + "--", "+" * 20),
            Rule(),
            "class class 0 falls from 100.0% to 80.0% of 10 images, by more than max_class_drop",
        ),
        (
            ("++--",),
            ("+++-",),
            Rule(test="bootstrap", max_class_drop=None),
            "the bootstrap's lower bound is 0.0 points",
        ),
    ],
)
def test_what_keeps_the_champion(
    champion: tuple[str, ...], challenger: tuple[str, ...], rule: Rule, reason: str
) -> None:
    (said,) = judged(paired(answers(*champion), answers(*challenger)), rule).reasons
    assert reason in said


def test_limits_are_as_they_are_written() -> None:
    """A gain of just min_gain is enough, and a fall of just max_class_drop is borne."""
    pairs = paired(answers("+" * 10, "+" * 60 + "-" * 30), answers("+" * 9 + "-", "+" * 90))
    assert judged(pairs, Rule(min_gain=0.29, max_class_drop=0.1)).reasons == []
    assert len(judged(pairs, Rule(min_gain=0.2901, max_class_drop=0.0999)).reasons) == 2


def test_the_mean_of_classes_counts_a_rare_class_in_full() -> None:
    # 8 of 80 images lost, and all of 10 won.
    pairs = paired(answers("+" * 80, "-" * 10), answers("+" * 72 + "-" * 8, "+" * 10))
    rule = rule_of(["metric=class_mean", "test=bootstrap", "max_class_drop=0.2", "resamples=999"])
    found = judged(pairs, rule)
    assert found.gain == pytest.approx(0.45)
    assert found.low is not None
    assert 0.4 < found.low < 0.45
    assert found.reasons == []
    assert judged(pairs, rule).low == found.low
    assert judged(pairs, WIDE).gain == pytest.approx(2 / 90)


def test_classes_go_by_their_names_not_by_their_places() -> None:
    """A dataset that has grown has more classes; a challenger may answer with one of them."""
    more = [Class(wnid="new", name="new"), *CLASSES]
    same = answers("++", "+-")
    moved = same.model_copy(
        update={
            "classes": more,
            "labels": [n + 1 for n in same.labels],
            "predicted": [n + 1 for n in same.predicted[:-1]] + [0],
        }
    )
    pairs = paired(same, moved)
    assert pairs.champion.tolist() == pairs.challenger.tolist() == [True, True, True, False]
    assert pairs.differ.tolist() == [False, False, False, True]


def test_other_test_images_are_refused() -> None:
    one = answers("++")
    for other in (answers("++", test="sha256:u"), answers("++", keys=["a", "b"])):
        with pytest.raises(UserError, match="judged on different test images") as error:
            paired(one, other)
        assert "\n" not in str(error.value)
    renamed = [Class(wnid=f"m{i}", name="x") for i in range(4)]
    with pytest.raises(UserError, match="by other names"):
        paired(one, answers("++", classes=renamed))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gain=1"], "unknown setting of the rule 'gain'; did you mean 'min_gain'"),
        (["level=0"], "setting of the rule level=0: input should be greater than 0"),
        (["metric=class_mean"], "McNemar's test is of top1 alone; add test=bootstrap"),
        (["max_class_drop=much"], "setting of the rule max_class_drop"),
    ],
)
def test_no_rule(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule_of(words)


def test_null_is_no_limit() -> None:
    assert rule_of(["max_class_drop=null"]).max_class_drop is None
