"""What is said about a discriminator that wins outright."""

from __future__ import annotations

from percmae.config import load_config
from percmae.engine.contest import Contest


def test_a_discriminator_that_wins_for_an_epoch_is_told_once() -> None:
    contest = Contest(load_config("ls_gan", overrides=["discriminator.lr=0.003"]))
    shares = (0.995, 0.999, 0.98, 1.0, 0.99, 1.0)
    assert not any(contest.remark(share, 3, 10) for share in shares), "no epoch without a break"
    said = contest.remark(0.996, 3, 10)
    assert said is not None
    assert "99.6 % of images" in said
    assert "discriminator.lr (now 0.003)" in said
    assert contest.remark(1.0, 10, 10) is None


def test_without_a_rate_of_its_own_the_generators_is_named() -> None:
    contest = Contest(load_config("ls_gan", overrides=["optim.lr=0.0004"]))
    assert "(now 0.0004)" in (contest.remark(1.0, 50, 10) or "")
