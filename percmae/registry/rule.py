"""The rule between champion and challenger: from their answers for the same images to a decision.

A tie, and all that chance alone would do as well, keeps the champion.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from percmae.config.flat import checked, merged
from percmae.config.schema import Fraction
from percmae.config.variants import SETTINGS
from percmae.errors import ConfigError, UserError
from percmae.runs.predictions import Class, Predictions

_WHAT = "setting of the rule"
# A share is a count over millions at most; what is beyond is the arithmetic's.
_DIGITS = 9


@dataclass(config=SETTINGS)
class Rule:
    """When a challenger takes the champion's place."""

    metric: Literal["top1", "class_mean"] = "top1"
    """What is compared: the share of test images whose first answer is right, or the mean of the
    classes' shares, in which a class of few images counts as much as one of many."""
    min_gain: Fraction = 0.0
    """The challenger has to be ahead by at least this, as a share in 0..1."""
    max_class_drop: Fraction | None = 0.1
    """No class's share of right answers may fall by more than this; null for no such limit. Of a
    class of 20 test images one is 0.05: let it be wide where classes have few."""
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"
    """What tells a gain from chance: McNemar's exact test of the images on which the two differ
    (top1 alone), or a bootstrap of the pairs."""
    level: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """The largest probability of such a gain by chance (one-sided) with which one is promoted."""
    resamples: PositiveInt = 9999
    """Of the bootstrap; their draws are always the same."""


def rule_of(words: Iterable[str]) -> Rule:
    """The rule from ``key=value``. Raises ConfigError for what is no rule."""
    rule = checked(Rule, _WHAT, merged(Rule, _WHAT, words))
    if rule.metric != "top1" and rule.test == "mcnemar":
        raise ConfigError(
            f"{_WHAT} metric={rule.metric}: McNemar's test is of top1 alone; add test=bootstrap"
        )
    return rule


class Pairs(NamedTuple):
    """Answers of two classifiers for the same images.

    classes: of the test images; labels: places in it, int64 (n,); champion, challenger: whether
    the first answer was right, bool (n,); differ: whether the answers are not the same, bool (n,).
    """

    classes: list[Class]
    labels: np.ndarray
    champion: np.ndarray
    challenger: np.ndarray
    differ: np.ndarray

    def metric(self, name: str, right: np.ndarray) -> float:
        """The share of right answers, or the mean of the shares of classes that have images."""
        if name == "top1":
            return float(right.mean())
        counts = np.bincount(self.labels, minlength=len(self.classes))
        found = np.bincount(self.labels, weights=right, minlength=len(self.classes))
        return float((found[counts > 0] / counts[counts > 0]).mean())


class ClassDrop(NamedTuple):
    """The class that has lost most: its images, and the shares that were and are right."""

    of: Class
    samples: int
    champion: float
    challenger: float

    @property
    def drop(self) -> float:
        """By how much the share has fallen; negative where it has risen."""
        return round(self.champion - self.challenger, _DIGITS)


class Verdict(NamedTuple):
    """What the rule says of two.

    gain: of the metric; p_value: that chance alone makes such a gain (McNemar); low: what the gain
    is at least, at the level (bootstrap); reasons: why the champion stays, none where it does not.
    """

    champion: float
    challenger: float
    gain: float
    champion_only: int
    challenger_only: int
    p_value: float | None
    low: float | None
    worst: ClassDrop
    reasons: list[str]


def paired(champion: Predictions, challenger: Predictions) -> Pairs:
    """The answers of two for the same images; classes go by their wnids, whatever their places.

    Raises UserError for other test images.
    """
    if champion.test != challenger.test or champion.keys != challenger.keys:
        raise UserError(
            "champion and challenger were judged on different test images (digests "
            f"{champion.test} and {challenger.test}); evaluate both on one dataset"
        )
    ours, theirs = (
        np.array([each.wnid for each in of.classes], dtype=np.str_) for of in (champion, challenger)
    )
    labels = np.array(challenger.labels, dtype=np.int64)
    if not np.array_equal(ours[champion.labels], theirs[labels]):
        raise UserError(
            "champion and challenger know the classes of the test images by other names; evaluate "
            "both on one dataset"
        )
    truth, first, second = theirs[labels], ours[champion.predicted], theirs[challenger.predicted]
    return Pairs(
        challenger.classes, labels, first == truth, second == truth, np.not_equal(first, second)
    )


def judged(pairs: Pairs, rule: Rule) -> Verdict:
    """Hold a challenger's answers against the champion's."""
    before, after = (
        pairs.metric(rule.metric, right) for right in (pairs.champion, pairs.challenger)
    )
    gain = round(after - before, _DIGITS)
    lost = int((pairs.champion & ~pairs.challenger).sum())
    won = int((pairs.challenger & ~pairs.champion).sum())
    p_value = _mcnemar(won, lost) if rule.test == "mcnemar" else None
    low = _bootstrapped(pairs, rule) if rule.test == "bootstrap" else None
    worst = _worst(pairs)
    reasons = []
    if gain <= 0:
        how = "is the same" if gain == 0 else f"is {points(-gain)} lower"
        reasons.append(f"its {TOLD[rule.metric]} {how}")
    elif gain < rule.min_gain:
        reasons.append(f"it gains {points(gain)}, less than min_gain={rule.min_gain:g}")
    if gain > 0 and p_value is not None and p_value > rule.level:
        reasons.append(
            f"chance alone makes a gain of {points(gain)} with probability {p_value:.2g}, above "
            f"level={rule.level:g} (McNemar's exact test)"
        )
    if gain > 0 and low is not None and low <= 0:
        reasons.append(
            f"a gain of {points(gain)} may be chance: at level={rule.level:g} the bootstrap's "
            f"lower bound is {points(low)}"
        )
    if rule.max_class_drop is not None and worst.drop > rule.max_class_drop:
        reasons.append(
            f"class {worst.of.name} falls from {worst.champion:.1%} to {worst.challenger:.1%} of "
            f"{worst.samples:,} images, by more than max_class_drop={rule.max_class_drop:g}"
        )
    return Verdict(before, after, gain, lost, won, p_value, low, worst, reasons)


TOLD = {"top1": "top-1", "class_mean": "mean top-1 of the classes"}
"""Each metric in words."""


def points(share: float) -> str:
    """A difference of shares in words."""
    return f"{100 * share:.1f} points"


def _mcnemar(won: int, lost: int) -> float:
    """One-sided exact test (McNemar 1947): of the images on which one alone is right, as many or
    more would be the challenger's if each of the two were as likely to be right."""
    from scipy.stats import binomtest  # takes a second to import

    if won + lost == 0:
        return 1.0
    return float(binomtest(won, won + lost, 0.5, alternative="greater").pvalue)


def _bootstrapped(pairs: Pairs, rule: Rule) -> float:
    """The lower bound of the gain, one-sided, by a percentile bootstrap of the pairs."""
    from scipy.stats import bootstrap  # as above

    def gain(rows: np.ndarray) -> float:
        drawn = pairs._replace(labels=pairs.labels[rows])
        metric = drawn.metric
        return metric(rule.metric, pairs.challenger[rows]) - metric(
            rule.metric, pairs.champion[rows]
        )

    found = bootstrap(
        (np.arange(len(pairs.labels)),),
        gain,
        vectorized=False,
        n_resamples=rule.resamples,
        confidence_level=1 - rule.level,
        alternative="greater",
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low)


def _worst(pairs: Pairs) -> ClassDrop:
    size = len(pairs.classes)
    counts = np.bincount(pairs.labels, minlength=size)
    shares = [
        np.bincount(pairs.labels, weights=right, minlength=size) / np.maximum(counts, 1)
        for right in (pairs.champion, pairs.challenger)
    ]
    place = int(np.argmax(np.where(counts > 0, shares[0] - shares[1], -np.inf)))
    return ClassDrop(
        pairs.classes[place], int(counts[place]), float(shares[0][place]), float(shares[1][place])
    )
