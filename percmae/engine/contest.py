"""Whether a discriminator wins outright, so that the generator learns little from it."""

from __future__ import annotations

from percmae.config import Config

WON = 0.99
"""Share of images told right that leaves nothing to decide."""


class Contest:
    """Finds, once, that a discriminator has won for an epoch of the steps that this process saw."""

    def __init__(self, config: Config) -> None:
        own = config.discriminator.lr
        self._rate = config.optim.lr if own is None else own
        self._won = 0  # steps in a row
        self._said = False

    def remark(self, accuracy: float, steps: int, epoch: int) -> str | None:
        """accuracy: mean over so many steps, since the last call; epoch: steps in one."""
        self._won = self._won + steps if accuracy >= WON else 0
        if self._won < epoch or self._said:
            return None
        self._said = True
        return (
            f"for an epoch the discriminator has told {100 * accuracy:.1f} % of images right, real "
            "from generated ones, so that the generator learns little from it; lower "
            f"discriminator.lr (now {self._rate:g})"
        )
